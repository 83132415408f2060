"""The model against transformers, through paged prefill, chunks and decode."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from app.engine.cache.prefix_cache import PrefixCache
from app.engine.torch.engine import Engine
from app.engine.torch.memory import kv_cache
from app.engine.torch.model.architecture import read_architecture
from app.engine.torch.model.decoder import Decoder
from app.engine.torch.model.runner import ModelRunner
from app.engine.torch.model.weights import load_weights
from app.engine.torch.request import Request
from app.engine.torch.scheduler import Scheduler
from app.generation import GenerateRequest, SamplingParams
from app.settings.engine import EngineConfig, SchedulerConfig
from kernels.backends import BACKENDS, load_kernels

CPU = torch.device("cpu")
BLOCK = 8
NUM_PROMPT = 45
SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,  # tied, random weights mostly repeat the last token
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 20}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
NewConfig = type[PreTrainedConfig]
MODELS: dict[str, tuple[NewConfig, dict[str, Any]]] = {
    "Llama (4, 2)": (LlamaConfig, {}),
    "Llama (4, 4) tied": (LlamaConfig, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "Llama (9, 3)": (LlamaConfig, {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "Llama (5, 1) wide heads": (
        LlamaConfig,
        {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 32},
    ),
    "Llama biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "Llama base": (LlamaConfig, {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
    "Llama linear": (LlamaConfig, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "Llama dynamic": (LlamaConfig, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    "Llama llama3": (LlamaConfig, {"rope_scaling": LLAMA3}),
    "Llama yarn": (LlamaConfig, {"rope_scaling": YARN}),
    "Mistral window": (MistralConfig, {"sliding_window": 20}),
    "Mistral no window": (MistralConfig, {"sliding_window": None, "head_dim": 32}),
    "Qwen2": (Qwen2Config, {"sliding_window": 20}),
    "Qwen2 tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "Qwen2 window from layer 1": (Qwen2Config, WINDOWS | {"max_window_layers": 1}),
    "Qwen3": (Qwen3Config, {"head_dim": 32}),
    "Qwen3 biases": (Qwen3Config, {"head_dim": 16, "attention_bias": True}),
    "Qwen3 layer types": (
        Qwen3Config,
        WINDOWS
        | {"head_dim": 32, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
}


_WHY_NOT_CPU = BACKENDS["cpu"].why_not(CPU)
needs_cpu_backend = pytest.mark.skipif(_WHY_NOT_CPU is not None, reason=f"backend cpu: {_WHY_NOT_CPU}")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads would spend their time waiting for each other: the tensors are tiny."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def new_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make the model of that name, with random weights, as transformers saves it; once."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            new_config, changes = MODELS[name]
            torch.manual_seed(0)
            models: Any = AutoModelForCausalLM
            model = models.from_config(new_config(**(SHAPE | changes)))
            for parameter in model.parameters():
                # Wide enough that attention is not uniform and no two tokens are nearly as likely.
                torch.nn.init.normal_(parameter, std=0.2)
            folders[name] = tmp_path_factory.mktemp("tiny-model")
            model.save_pretrained(folders[name])
        return folders[name]

    return make


def load_plain(model_dir: Path) -> Any:
    """The model as transformers computes it."""
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")


def new_runner(
    model_dir: Path, backend: str, num_blocks: int, dtype: torch.dtype = torch.float32
) -> ModelRunner:
    architecture = read_architecture(model_dir)
    kernels = load_kernels(backend)
    weights = load_weights(model_dir, architecture, kernels, CPU, dtype)
    cache = kv_cache.allocate(architecture, num_blocks, BLOCK, CPU, dtype).fill_(float("nan"))
    return ModelRunner(Decoder(architecture, weights, kernels, 128), kernels, cache)


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
        logits, _ = runner.run(schedule.scheduled)
        scheduler.complete(schedule)
        for row, request in zip(logits, schedule.sampled, strict=True):
            index = int(request.request_id)
            rows[index].append(row)
            if request.num_tokens == len(texts[index]):
                scheduler.remove(request)
            else:
                request.token_ids.append(texts[index][request.num_tokens])
    return [torch.stack(rows_of_text) for rows_of_text in rows]


def random_texts(num_tokens: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(512) for _ in range(num_tokens)] for _ in range(3)]


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_as_exact_as_those_of_transformers(name: str, new_model: Callable[[str], Path]) -> None:
    """At most twice the error of transformers in float32, both against transformers in float64."""
    model_dir, texts = new_model(name), random_texts(60)
    plain = load_plain(model_dir)
    with torch.inference_mode():
        theirs = plain(torch.tensor(texts)).logits[:, NUM_PROMPT - 1 :]
        exact = plain.double()(torch.tensor(texts)).logits[:, NUM_PROMPT - 1 :]
    allowed = 2 * (theirs - exact).abs().max()
    for backend in ("torch", "reference"):
        for budget in (200, 7):
            runner = new_runner(model_dir, backend, 100)
            ours = torch.stack(forced_logits(runner, texts, NUM_PROMPT, budget))
            assert (ours - exact).abs().max() <= allowed, (backend, budget)


@needs_cpu_backend
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_on_the_cpu_backend_is_as_exact_as_in_transformers_and_the_same_in_any_company(
    name: str, new_model: Callable[[str], Path]
) -> None:
    """As a root mean square, against transformers in float64. In chunks, together and alone: bit for bit."""
    model_dir, texts = new_model(name), random_texts(60)
    plain = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16, attn_implementation="eager")
    with torch.inference_mode():
        theirs = plain(torch.tensor(texts)).logits[:, NUM_PROMPT - 1 :]
        exact = load_plain(model_dir).double()(torch.tensor(texts)).logits[:, NUM_PROMPT - 1 :]

    def ours(texts: list[list[int]], budget: int) -> Tensor:
        runner = new_runner(model_dir, "cpu", 100, torch.bfloat16)
        return torch.stack(forced_logits(runner, texts, NUM_PROMPT, budget))

    together = ours(texts, 200)
    assert (together - exact).square().mean() <= (2 * (theirs - exact).square().mean().sqrt()).square()
    assert torch.equal(ours(texts, 7), together)
    assert torch.equal(torch.cat([ours([text], 13) for text in texts]), together)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(name: str, new_model: Callable[[str], Path]) -> None:
    """Prompts in chunks, a cache that can't hold all three texts, prompts partly cached before."""
    model_dir, num_new = new_model(name), 40
    prompts = random_texts(NUM_PROMPT)
    config = {"cache": {"block_size": 4, "num_blocks": 50}, "scheduler": {"max_batch_tokens": 16}}
    engine = Engine.load(model_dir, EngineConfig.model_validate(config), device="cpu", dtype="float32")
    plain = load_plain(model_dir)
    plain.generation_config.eos_token_id = None
    expected = plain.generate(torch.tensor(prompts), max_new_tokens=num_new, do_sample=False, pad_token_id=0)[
        :, NUM_PROMPT:
    ].tolist()
    assert generate(engine, prompts, num_new) == expected
    assert generate(engine, prompts[::-1], num_new) == expected[::-1]


def generate(engine: Engine, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        engine.add_request(
            GenerateRequest(str(index), prompt, SamplingParams(num_new, temperature=0.0, ignore_eos=True))
        )
    while engine.has_work():
        for output in engine.step().outputs:
            answers[int(output.request_id)] += output.new_token_ids
        engine.check_integrity()
    return answers
