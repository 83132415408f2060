"""Figures of kvbeacon's engine that no other engine is asked for: prefix hits, overheads, bounds, quality."""

from __future__ import annotations

import math
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from app.config import AppConfig
from app.engine.loading.torch_engine import load_step_engine
from app.engine.torch.engine import Engine
from app.engine.torch.model.architecture import read_architecture
from app.generation import GenerateRequest, SamplingParams
from benchmarks.engine.narrow_model import write_served_model
from benchmarks.engine.perplexity import perplexity

PREFIX_TOKENS = 1024
BATCH = 8
STEPS = 40
BANDWIDTH_BYTES = 2**30


@dataclass(frozen=True)
class InsideFigures:
    """All of them.

    Attributes:
        prefix_recompute_s, prefix_hit_s: time to first token of a 1,024-token prefix and one more token, the
            prefix computed or found in the cache.
        step_s: one decode step of 8 requests.
        scheduler_step_s: the same on a model of one layer and almost no width: scheduling, building the
            batch, sampling.
        python_step_s: the same on a model as deep as the real one and almost no width: that and every call
            of every layer, without their work.
        read_bytes_per_s: what all threads together read from memory.
        weight_bytes: what a decode step of one request must read of the weights.
        perplexity, perplexity_float32: on a fixed text, in the measured dtype and in float32.
    """

    prefix_recompute_s: float
    prefix_hit_s: float
    step_s: float
    scheduler_step_s: float
    python_step_s: float
    read_bytes_per_s: float
    weight_bytes: int
    perplexity: float
    perplexity_float32: float

    def as_json(self, decode_tok_s: float) -> dict[str, float]:
        """By name; `decode_tok_s` is the rate at batch 1 that the weight-bandwidth bound is compared with."""
        bound = self.read_bytes_per_s / self.weight_bytes
        return {
            "prefix_hit_speedup": self.prefix_recompute_s / self.prefix_hit_s,
            "prefix_recompute_s": self.prefix_recompute_s,
            "prefix_hit_s": self.prefix_hit_s,
            "step_s_b8": self.step_s,
            "scheduler_fraction": self.scheduler_step_s / self.step_s,
            "python_fraction": self.python_step_s / self.step_s,
            "read_gb_s": self.read_bytes_per_s / 1e9,
            "weight_bandwidth_bound_tok_s": bound,
            "decode_fraction_of_bound": decode_tok_s / bound,
            "perplexity": self.perplexity,
            "perplexity_float32": self.perplexity_float32,
        }

    def readable(self, decode_tok_s: float) -> str:
        """The same for people."""
        figures = self.as_json(decode_tok_s)
        return (
            f"1,024-token prefix: {self.prefix_recompute_s * 1e3:.0f} ms recomputed, "
            f"{self.prefix_hit_s * 1e3:.0f} ms from the cache\n"
            f"decode step of {BATCH}: {self.step_s * 1e3:.1f} ms, of which scheduler "
            f"{figures['scheduler_fraction']:.1%}, all of Python {figures['python_fraction']:.1%}\n"
            f"memory: {figures['read_gb_s']:.1f} GB/s, so at most "
            f"{figures['weight_bandwidth_bound_tok_s']:.0f} tokens/s at batch 1, of which "
            f"{figures['decode_fraction_of_bound']:.0%} reached\n"
            f"perplexity: {self.perplexity:.4f}, in float32 {self.perplexity_float32:.4f}"
        )


def measure_inside(model_dir: Path, dtype: Any, threads: int, kernels: Any, rounds: int) -> InsideFigures:
    """Everything, in this process.

    Raises:
        KvbeaconError: the engine can't be loaded.
    """

    def load(folder: Path) -> Engine:
        model = {"path": str(folder), "device": "cpu", "dtype": dtype}
        engine = {"kernels": kernels, "num_threads": threads, "cache": {"num_blocks": 1024}}
        return load_step_engine(AppConfig.model_validate({"model": model, "engine": engine}))

    architecture = read_architecture(model_dir)
    engine = load(model_dir)
    rng = random.Random(0)
    pairs = [_prefix_pair(engine, rng) for _ in range(rounds)]
    with tempfile.TemporaryDirectory() as folder:
        depths = {"one": 1, "all": architecture.num_hidden_layers}
        narrow = {
            name: load(write_served_model(Path(folder) / name, num_layers))
            for name, num_layers in depths.items()
        }
        engines = {"real": engine, **narrow}
        steps = {name: median(_step_s(each, rng) for _ in range(rounds)) for name, each in engines.items()}
    head_and_layers = architecture.num_weights - architecture.vocab_size * architecture.hidden_size
    return InsideFigures(
        prefix_recompute_s=median(pair[0] for pair in pairs),
        prefix_hit_s=median(pair[1] for pair in pairs),
        step_s=steps["real"],
        scheduler_step_s=steps["one"],
        python_step_s=steps["all"],
        read_bytes_per_s=_read_bytes_per_s(rounds),
        weight_bytes=head_and_layers * engine.dtype.itemsize,
        perplexity=perplexity(model_dir, engine.dtype, kernels),
        perplexity_float32=perplexity(model_dir, torch.float32, "torch"),
    )


def _prefix_pair(engine: Engine, rng: random.Random) -> tuple[float, float]:
    """Seconds to the first token, cold and then with the prefix cached."""
    prompt = [rng.randint(100, 30_000) for _ in range(PREFIX_TOKENS + 1)]
    return _ttft_s(engine, prompt), _ttft_s(engine, prompt)


def _ttft_s(engine: Engine, prompt: list[int]) -> float:
    started = time.perf_counter()
    engine.add_request(GenerateRequest("prefix", prompt, SamplingParams(1, temperature=0.0)))
    while engine.has_work():
        engine.step()
    return time.perf_counter() - started


def _step_s(engine: Engine, rng: random.Random) -> float:
    """Median seconds of a decode step."""
    for index in range(BATCH):
        prompt = [rng.randint(3, 500) for _ in range(32)]
        engine.add_request(
            GenerateRequest(str(index), prompt, SamplingParams(STEPS, temperature=0.0, ignore_eos=True))
        )
    seconds = []
    while engine.has_work():
        started = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _read_bytes_per_s(rounds: int) -> float:
    numbers = torch.ones(BANDWIDTH_BYTES // 4)
    fastest = math.inf
    for _ in range(2 * rounds):
        started = time.perf_counter()
        numbers.sum()
        fastest = min(fastest, time.perf_counter() - started)
    return BANDWIDTH_BYTES / fastest
