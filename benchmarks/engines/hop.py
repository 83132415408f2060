"""What the way to a worker by URL adds to its time to first token: `python -m benchmarks.engines.hop`.

A kvbeacon graph with one rank is the worker. The same kind of cold prompt goes to it over plain HTTP, as its
own clients send it, and through a rank by URL: from `RankEngine.admit` to the first chunk. One at a time,
each kind in turn; the difference of the medians is what the rank adds. Progress goes to stderr; the last line
of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from app.config import load_config
from app.engine.interface import RankEngine
from app.engine.load import load_engine
from app.errors import KvbeaconError
from app.generation import GenerateRequest, SamplingParams
from benchmarks.arguments import positive
from benchmarks.engines.graphs import POLICY, engine_args, remote_args
from benchmarks.graphs.graph import deployed, running_ray, with_policy
from benchmarks.machine import machine

READY_WITHIN_S = 60.0
POLL_INTERVAL_S = 0.1
TOKEN_IDS_BELOW = 40_000
"""Prompts are random token ids below it, so that no two share a block."""


def main() -> None:
    """Parse, run, print."""
    options = _parser().parse_args()
    settings: dict[str, Any] = {"model": options.model, "dtype": options.dtype, "num_blocks": 512}
    worker = with_policy(engine_args(options.backend, **settings, dp_size=1), POLICY, 1)
    try:
        with running_ray(load_config(worker)) as url, deployed(worker):
            direct, through = asyncio.run(_measure(url, options))
    except (KvbeaconError, httpx.HTTPError, TimeoutError) as error:
        sys.exit(f"benchmarks.engines.hop failed: {error!r}")
    figures = {**_figures("direct", direct), **_figures("through", through)}
    figures["added_p50_ms"] = figures["through_p50_ms"] - figures["direct_p50_ms"]
    for name, value in figures.items():
        print(f"{name:<16}{value:8.2f}")
    print(json.dumps({**figures, "options": vars(options), "machine": machine()}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines.hop", description=__doc__)
    parser.add_argument("--backend", choices=["torch", "vllm"], default="torch", help="what the worker runs")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as model.path")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--prompt-tokens", type=positive(int), default=48)
    parser.add_argument("--requests", type=positive(int), default=100, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    return parser


async def _measure(url: str, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Seconds to the first token of each request: directly, and through a rank by URL."""
    config = load_config(remote_args([url], options.model))
    engine = load_engine(config, 0)
    engine.start(None)
    chance = random.Random(options.seed)

    def prompt() -> list[int]:
        return [chance.randrange(TOKEN_IDS_BELOW) for _ in range(options.prompt_tokens)]

    direct: list[float] = []
    through: list[float] = []
    try:
        async with httpx.AsyncClient(base_url=url, timeout=READY_WITHIN_S) as client:
            await _wait_until_available(engine)
            # The first of each makes connections, and the worker measures itself.
            await _direct_ttft_s(client, prompt())
            await _through_ttft_s(engine, prompt())
            for _ in tqdm(range(options.requests), desc="pairs", unit="pair"):
                direct.append(await _direct_ttft_s(client, prompt()))
                through.append(await _through_ttft_s(engine, prompt()))
    finally:
        engine.stop()
    return direct, through


async def _wait_until_available(engine: RankEngine) -> None:
    async with asyncio.timeout(READY_WITHIN_S):
        while engine.status.unavailable is not None:
            await asyncio.sleep(POLL_INTERVAL_S)


async def _direct_ttft_s(client: httpx.AsyncClient, token_ids: list[int]) -> float:
    body = {
        "input_ids": token_ids,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True},
        "stream": True,
        "incremental_streaming_output": True,
    }
    started = time.perf_counter()
    async with client.stream("POST", "/generate", json=body) as response:
        response.raise_for_status()
        lines = response.aiter_lines()
        await anext(lines)
        first_s = time.perf_counter() - started
        async for _ in lines:
            pass
    return first_s


async def _through_ttft_s(engine: RankEngine, token_ids: list[int]) -> float:
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    started = time.perf_counter()
    admitted = engine.admit(GenerateRequest(uuid.uuid4().hex, token_ids, params))
    await anext(admitted)
    first_s = time.perf_counter() - started
    async for _ in admitted:
        pass
    return first_s


def _figures(name: str, seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = (np.percentile(seconds, [50, 99]) * 1000).tolist()
    return {f"{name}_p50_ms": p50, f"{name}_p99_ms": p99}


if __name__ == "__main__":
    main()
