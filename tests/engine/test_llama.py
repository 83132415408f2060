"""The model against transformers, through paged prefill, chunks and decode."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from app.config import SchedulerConfig
from app.engine import kv_cache
from app.engine.architecture import read_architecture
from app.engine.model import Llama
from app.engine.model_runner import ModelRunner
from app.engine.prefix_cache import PrefixCache
from app.engine.request import Request, SamplingParams
from app.engine.scheduler import Scheduler
from app.engine.weights import load_weights
from kernels import load_kernels

CPU = torch.device("cpu")
BLOCK = 8
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES: dict[str, dict[str, Any]] = {
    "(4, 2)": {},
    "(4, 4) tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "(9, 3)": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8},
    "(5, 1) wide heads": {
        "hidden_size": 80,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope": {"rope_scaling": LLAMA3},
    "new rope keys": {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
}


def new_runner(model_dir: Path, backend: str, num_blocks: int) -> ModelRunner:
    architecture = read_architecture(model_dir)
    kernels = load_kernels(backend)
    weights = load_weights(model_dir, architecture, kernels, CPU, torch.float32)
    cache = kv_cache.allocate(architecture, num_blocks, BLOCK, CPU, torch.float32).fill_(float("nan"))
    return ModelRunner(Llama(architecture, weights, kernels, 128), kernels, cache)


def forced_logits(runner: ModelRunner, texts: list[list[int]], num_prompt: int, budget: int) -> list[Tensor]:
    """Logits [len - num_prompt + 1, vocab] of each text, whose tokens after the prompt are fed one by one."""
    config = SchedulerConfig.model_validate({"max_batch_tokens": budget})
    scheduler = Scheduler(config, PrefixCache(100, BLOCK))
    params = SamplingParams(100)
    requests = [
        Request.new(str(index), text[:num_prompt], params, max_output_tokens=100)
        for index, text in enumerate(texts)
    ]
    for request in requests:
        scheduler.add([request])
    rows: list[list[Tensor]] = [[] for _ in texts]
    while scheduler.num_running + scheduler.num_waiting:
        schedule = scheduler.schedule()
        logits = runner.run(schedule.scheduled)
        scheduler.complete(schedule)
        for row, request in zip(logits, schedule.sampled, strict=True):
            index = int(request.request_id)
            rows[index].append(row)
            if request.num_tokens == len(texts[index]):
                scheduler.remove(request)
            else:
                request.token_ids.append(texts[index][request.num_tokens])
    return [torch.stack(rows_of_text) for rows_of_text in rows]


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("budget", [200, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_as_exact_as_those_of_transformers(
    shape: str, budget: int, backend: str, new_tiny_llama: Callable[..., Path]
) -> None:
    """At most twice the error of transformers in float32, both against transformers in float64."""
    model_dir = new_tiny_llama(**SHAPES[shape])
    rng = random.Random(0)
    num_prompt = 45
    texts = [[rng.randrange(512) for _ in range(60)] for _ in range(3)]
    plain = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        theirs = plain(torch.tensor(texts)).logits[:, num_prompt - 1 :]
        exact = plain.double()(torch.tensor(texts)).logits[:, num_prompt - 1 :]
    ours = torch.stack(forced_logits(new_runner(model_dir, backend, 100), texts, num_prompt, budget))
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()
