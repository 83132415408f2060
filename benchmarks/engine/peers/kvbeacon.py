"""This engine as a peer: `python -m benchmarks.engine.peers.kvbeacon MODEL_DIR DTYPE THREADS KERNELS`."""

from __future__ import annotations

import itertools
import sys

from app.config import AppConfig
from app.engine.loading.torch_engine import load_step_engine
from app.generation import GenerateRequest, SamplingParams
from benchmarks.engine.peers.server import Generate, serve


def load() -> Generate:
    """The engine with what one rank would have."""
    model_dir, dtype, threads, kernels = sys.argv[1:5]
    model = {"path": model_dir, "device": "cpu", "dtype": dtype}
    settings = {"kernels": kernels, "num_threads": int(threads), "cache": {"num_blocks": 2048}}
    engine = load_step_engine(AppConfig.model_validate({"model": model, "engine": settings}))
    ids = itertools.count()

    def generate(prompts: list[list[int]], max_tokens: int) -> None:
        for prompt in prompts:
            params = SamplingParams(max_tokens, temperature=0.0, ignore_eos=True)
            engine.add_request(GenerateRequest(str(next(ids)), prompt, params))
        while engine.has_work():
            engine.step()

    return generate


if __name__ == "__main__":
    serve(load)
