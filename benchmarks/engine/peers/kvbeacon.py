"""This engine as a peer: `python -m benchmarks.engine.peers.kvbeacon MODEL_DIR DTYPE THREADS KERNELS`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

from app.config import EngineConfig
from app.engine.torch.engine import Engine
from app.generation import SamplingParams
from benchmarks.engine.peers.server import Generate, serve


def load() -> Generate:
    """The engine with what one rank would have."""
    model_dir, dtype, threads, kernels = sys.argv[1:5]
    torch.set_num_threads(int(threads))
    config = EngineConfig.model_validate({"kernels": kernels, "cache": {"num_blocks": 2048}})
    engine = Engine.load(Path(model_dir), config, device="cpu", dtype=dtype)  # type: ignore[arg-type]
    ids = itertools.count()

    def generate(prompts: list[list[int]], max_tokens: int) -> None:
        for prompt in prompts:
            params = SamplingParams(max_tokens, temperature=0.0, ignore_eos=True)
            engine.add_request(str(next(ids)), prompt, params)
        while engine.has_work():
            engine.step()

    return generate


if __name__ == "__main__":
    serve(load)
