"""The graphs that are compared: two ranks of torch, of vLLM, or of workers by URL that run one of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from ray import serve

from app.build import build_app
from benchmarks.graphs.graph import deployed, with_policy

DP_SIZE = 2
BLOCK_SIZE = 32
"""Of every engine alike: vLLM's attention on a CPU takes multiples of it only."""
WORKER_OF: Final[Mapping[str, str]] = {"remote-torch": "torch", "remote-vllm": "vllm"}
"""Graphs of ranks by URL → what their workers run."""
ENGINES = ("torch", "vllm", *WORKER_OF)
POLICY = "predicted_ttft"


def engine_args(backend: str, *, model: str, dtype: str, num_blocks: int, dp_size: int) -> dict[str, Any]:
    """An application's `args` for ranks of `backend`, but for the ports."""
    return {
        "dp_size": dp_size,
        "model": {"path": model, "dtype": dtype},
        "engine": {
            "backend": backend,
            "cache": {"block_size": BLOCK_SIZE, "num_blocks": num_blocks},
            "scheduler": {"max_running_requests": 32, "max_batch_tokens": 512},
            "num_threads": 1,
        },
        "resources": {"num_cpus": 0.5},
    }


@contextmanager
def deployed_engine(engine: str, url: str, *, model: str, dtype: str, num_blocks: int) -> Iterator[None]:
    """A graph of `engine`, one of `ENGINES`, at `url`, with empty caches; deleted with the context.

    Workers by URL are applications of the same Ray, each with one rank, at `url`/worker-0 and so on.
    """
    settings: dict[str, Any] = {"model": model, "dtype": dtype, "num_blocks": num_blocks}
    backend = WORKER_OF.get(engine)
    if backend is None:
        with deployed(with_policy(engine_args(engine, **settings, dp_size=DP_SIZE), POLICY, DP_SIZE)):
            yield
        return
    names = [f"worker-{number}" for number in range(DP_SIZE)]
    for name in names:
        args = with_policy(engine_args(backend, **settings, dp_size=1), POLICY, 1)
        serve.run(build_app(args), name=name, route_prefix=f"/{name}")
    with deployed(with_policy(remote_args([f"{url}/{name}" for name in names], model), POLICY, DP_SIZE)):
        yield
    # After an error the cluster ends, and these with it.
    for name in names:
        serve.delete(name)


def remote_args(urls: list[str], model: str) -> dict[str, Any]:
    """An application's `args` for the ranks of the workers at `urls`, but for the ports."""
    return {
        "model": {"path": model},
        "engine": {"cache": {"block_size": BLOCK_SIZE}},
        "remote_ranks": {"workers": [{"url": url} for url in urls]},
    }
