"""How a router that is killed comes back: `python -m benchmarks.router_restart --ranks 8 --blocks 100000`.

A real graph of a narrow random model. The ranks' caches are filled to so many blocks each; then the only
router is killed (SIGKILL) while requests keep arriving. Every one of them must be answered, the router that
takes its place must soon know every block, and `/router/audit` must find its index equal to the caches.

Progress goes to stderr; stdout gets one JSON object. Exit status 1: something wasn't as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from app.config import load_config
from app.errors import KvbeaconError
from benchmarks.engine.narrow_model import MAX_POSITIONS, VOCAB, write_served_model
from benchmarks.graphs.graph import deployed, running_ray, with_policy
from benchmarks.graphs.replicas import replica_pids

READY_WITHIN_S = 240.0
POLL_EVERY_S = 0.05
PROMPT_TOKENS = MAX_POSITIONS - 48
"""Of the prompts that fill caches: nearly the whole context."""
FILLING_PER_RANK = 2
"""Prompts under way at each rank while it is filled."""
EXACT_WITHIN_S = 5.0
"""The bar, from the start of the new router's process on: its imports are part of it."""


@dataclass
class Arrivals:
    """Short requests, one after another at fixed times, whatever becomes of those before.

    Attributes:
        every_s: between two.
        outcomes: statuses, or the error's name.
        first_answer_at: when the first request that was sent after the kill was answered, monotonic.
        longest_s: of all.
    """

    every_s: float = 0.05
    outcomes: Counter[str] = field(default_factory=Counter)
    killed_at: float = float("inf")
    first_answer_at: float | None = None
    longest_s: float = 0.0

    async def run(self, http: httpx.AsyncClient, until: asyncio.Event) -> None:
        """Returns when all that were sent before `until` have ended."""
        async with asyncio.TaskGroup() as requests:
            while not until.is_set():
                requests.create_task(self._ask(http))
                await asyncio.sleep(self.every_s)

    async def _ask(self, http: httpx.AsyncClient) -> None:
        body = {"prompt": _tokens(20), "max_tokens": 2, "ignore_eos": True}
        sent_at = time.monotonic()
        try:
            outcome = str((await http.post("/v1/completions", json=body)).status_code)
        except httpx.HTTPError as error:
            outcome = type(error).__name__
        now = time.monotonic()
        self.outcomes[outcome] += 1
        self.longest_s = max(self.longest_s, now - sent_at)
        if sent_at > self.killed_at and outcome == "200" and self.first_answer_at is None:
            self.first_answer_at = now


def main() -> None:
    """Parse, run, print."""
    options = _parser().parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="kvbeacon-restart-") as folder:
            report = _measure(options, Path(folder))
    except (KvbeaconError, TimeoutError, httpx.HTTPError) as error:
        sys.exit(f"benchmarks.router_restart failed: {error!r}")
    print(json.dumps(report))
    sys.exit(0 if report["met"] else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router_restart", description=__doc__)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=100_000, help="in each rank's cache")
    parser.add_argument("--block-size", type=int, default=2, help="tokens; small, so that caches fill soon")
    parser.add_argument("--restarts", type=int, default=3, help="the router is killed so often")
    return parser


def _args(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    spare = 2 * FILLING_PER_RANK * MAX_POSITIONS // options.block_size
    return {
        "dp_size": options.ranks,
        "model": {"path": str(model), "served_name": "narrow", "dtype": "float32"},
        "engine": {
            "kernels": "torch",
            "cache": {"block_size": options.block_size, "num_blocks": options.blocks + spare},
            "scheduler": {"max_running_requests": 8, "max_batch_tokens": MAX_POSITIONS},
        },
        "resources": {"num_cpus": 0.2},
    }


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    args = _args(options, write_served_model(folder / "model", num_layers=1))
    with running_ray(load_config(args)) as url, deployed(with_policy(args, "predicted_ttft", options.ranks)):
        restarts, filled_s = asyncio.run(_run(options, url))
    return {
        "options": vars(options),
        "filled_in_s": round(filled_s, 1),
        "restarts": restarts,
        "met": all(each["met"] for each in restarts),
        "cpus": os.cpu_count(),
    }


async def _run(options: argparse.Namespace, url: str) -> tuple[list[dict[str, Any]], float]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=90, limits=limits) as http:
        await _until_exact(http, options.ranks, READY_WITHIN_S)
        started = time.monotonic()
        await _fill(http, options)
        filled_s = time.monotonic() - started
        return [await _restart(http, options) for _ in range(options.restarts)], filled_s


async def _fill(http: httpx.AsyncClient, options: argparse.Namespace) -> None:
    """Random prompts to each rank until its cache holds as many blocks as wanted."""
    per_prompt = PROMPT_TOKENS // options.block_size

    async def fill(rank: int) -> None:
        for num_missing in range(options.blocks, 0, -per_prompt):
            num_tokens = min(num_missing, per_prompt) * options.block_size
            async with slots[rank]:
                requests.create_task(ask(rank, num_tokens))

    async def ask(rank: int, num_tokens: int) -> None:
        body = {"prompt": _tokens(num_tokens), "max_tokens": 1}
        headers = {"X-Data-Parallel-Rank": str(rank)}
        async with slots[rank]:
            (await http.post("/v1/completions", json=body, headers=headers)).raise_for_status()
        progress.update(num_tokens // options.block_size)

    slots = [asyncio.Semaphore(FILLING_PER_RANK) for _ in range(options.ranks)]
    total = options.ranks * options.blocks
    with tqdm(total=total, unit="block", unit_scale=True, mininterval=1) as progress:
        async with asyncio.TaskGroup() as requests:
            for rank in range(options.ranks):
                requests.create_task(fill(rank))


async def _restart(http: httpx.AsyncClient, options: argparse.Namespace) -> dict[str, Any]:
    """Kill the router under arrivals, and see when its successor answers, and knows everything."""
    arrivals, is_over = Arrivals(), asyncio.Event()
    arriving = asyncio.create_task(arrivals.run(http, is_over))
    await asyncio.sleep(1)
    (killed,) = replica_pids("Router", os.getpid())
    os.kill(killed, signal.SIGKILL)
    arrivals.killed_at, killed_time = time.monotonic(), time.time()
    started_s = await _until_started(killed) - arrivals.killed_at
    first_view_at, first_view = await _until_viewed(http)
    ranks = await _until_exact(http, options.ranks, READY_WITHIN_S)
    # When the last rank became exact, by the router's own clock: not when it was seen from here.
    exact_s = max(rank["since"] for rank in ranks) - killed_time
    await asyncio.sleep(1)
    is_over.set()
    await arriving
    report = (await http.get("/router/audit")).json()
    first_view_s = first_view_at - arrivals.killed_at
    compared = [rank for router in report["routers"] for rank in router["ranks"]]
    first_answer_s = (arrivals.first_answer_at or float("inf")) - arrivals.killed_at
    return {
        "started_s_after_kill": round(started_s, 2),
        "first_view_s_after_kill": round(first_view_s, 2),
        "ranks_in_first_view": len(first_view),
        "first_answer_s_after_kill": round(first_answer_s, 2),
        "exact_s_after_kill": round(exact_s, 2),
        "exact_s_after_start": round(exact_s - started_s, 2),
        "requests": dict(arrivals.outcomes),
        "longest_request_s": round(arrivals.longest_s, 2),
        "audited_blocks": [rank["num_router_blocks"] for rank in compared],
        "audit_equal": report["equal"],
        "met": exact_s - started_s <= EXACT_WITHIN_S
        and set(arrivals.outcomes) == {"200"}
        and report["equal"]
        and all(rank["num_rank_blocks"] >= options.blocks for rank in compared),
    }


async def _until_started(killed: int) -> float:
    """When another router's process is there, monotonic."""
    while set(replica_pids("Router", os.getpid())) <= {killed}:
        await asyncio.sleep(POLL_EVERY_S)
    return time.monotonic()


async def _until_viewed(http: httpx.AsyncClient) -> tuple[float, list[dict[str, Any]]]:
    """When a router answers at all, monotonic, and what it says of the ranks then."""
    while (response := await http.get("/router/ranks")).status_code != httpx.codes.OK:
        await asyncio.sleep(POLL_EVERY_S)
    return time.monotonic(), response.json()


async def _until_exact(http: httpx.AsyncClient, num_ranks: int, timeout_s: float) -> list[dict[str, Any]]:
    """What the router says of the ranks once it knows the caches of all; raises `TimeoutError`."""
    async with asyncio.timeout(timeout_s):
        while True:
            response = await http.get("/router/ranks")
            if response.status_code == httpx.codes.OK:
                ranks: list[dict[str, Any]] = response.json()
                if [rank["trust"] for rank in ranks] == ["exact"] * num_ranks:
                    return ranks
            await asyncio.sleep(POLL_EVERY_S)


def _tokens(count: int) -> list[int]:
    return random.choices(range(10, VOCAB), k=count)


if __name__ == "__main__":
    main()
