"""The engine on each backend of its kernels."""

from __future__ import annotations

from pathlib import Path

import torch

from app.engine.torch.engine import Engine
from app.generation import GenerateRequest, SamplingParams
from app.settings.engine import EngineConfig
from app.settings.model import Device
from tests.kernels.harness import run_uninterpreted

PROMPTS = [list(range(10, 47)), list(range(100, 103)), [7]]


def greedy_tokens(model_dir: Path, kernels: str, device: Device) -> dict[str, list[int]]:
    cache, scheduler = {"block_size": 4, "num_blocks": 64}, {"max_batch_tokens": 16}
    config = EngineConfig.model_validate({"kernels": kernels, "cache": cache, "scheduler": scheduler})
    engine = Engine.load(model_dir, config, device=device, dtype="float32")
    params = SamplingParams(6, temperature=0.0, ignore_eos=True)
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(GenerateRequest(str(index), prompt, params))
    tokens: dict[str, list[int]] = {str(index): [] for index in range(len(PROMPTS))}
    while engine.has_work():
        for output in engine.step().outputs:
            tokens[output.request_id] += output.new_token_ids
    return tokens


def test_triton_gives_the_tokens_that_torch_gives(tiny_llama_dir: Path) -> None:
    """Interpreted where there is no GPU; in chunks, together and one by one."""
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    expected = greedy_tokens(tiny_llama_dir, "torch", device)
    assert all(len(tokens) == 6 for tokens in expected.values())
    assert greedy_tokens(tiny_llama_dir, "triton", device) == expected


SCRIPT = """
import sys
from pathlib import Path
from app.settings.engine import EngineConfig
from app.engine.torch.engine import Engine
from app.errors import ConfigError
try:
    Engine.load(Path(sys.argv[1]), EngineConfig(kernels="triton"), device="cpu")
except ConfigError as error:
    print(error)
"""


def test_kernels_that_cannot_run_are_a_wrong_setting(tiny_llama_dir: Path) -> None:
    printed = run_uninterpreted("-c", SCRIPT, str(tiny_llama_dir))
    assert printed.startswith("engine.kernels = 'triton': it runs on cuda")
