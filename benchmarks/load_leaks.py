"""Whether load leaks: `python -m benchmarks.load_leaks --requests 10000 --aborting 0.3`.

A real graph of a tiny random model; clients of whom some hang up at every stage; and one ingress killed
(SIGKILL) half-way. Afterwards every router must count no load, and no rank hold a request or a referenced
block. Then long streams are opened, and an ingress killed again: ranks must end what nobody hears any more.

Progress goes to stderr; stdout gets one JSON object. Exit status 1: something leaked or hung.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from ray import serve
from tqdm import tqdm

from app.config import load_config
from app.errors import KvbeaconError
from benchmarks.graph import APP_NAME, deployed, running_ray, with_policy
from benchmarks.hang_ups import Crowd, Traffic
from benchmarks.narrow_model import VOCAB, write_served_model
from benchmarks.replicas import replica_pids

READY_WITHIN_S = 120.0
SETTLED_S = 10.0
"""Within this all load must be gone."""
STAYS_S = 2.5
"""And stay gone: longer than ranks take between two reports, and routers between two looks."""
LOOK_EVERY_S = 0.1
LONG_STREAM_TOKENS = 1900
BREAKS_WITHIN_S = 1.0


@dataclass(frozen=True)
class Settling:
    """What was left once nobody asked for anything.

    Attributes:
        seconds_until_zero: until load was zero everywhere and stayed so; None if not within `SETTLED_S`.
        held: what routers and ranks still counted at the last look that found any.
        tokens_in_held_blocks: summed over the ranks, at the last look.
    """

    seconds_until_zero: float | None
    held: str | None
    tokens_in_held_blocks: int


def main() -> None:
    """Parse, run, print."""
    options = _parser().parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="kvbeacon-leaks-") as folder:
            report = _measure(options, Path(folder))
    except (KvbeaconError, TimeoutError, httpx.HTTPError) as error:
        sys.exit(f"benchmarks.load_leaks failed: {error!r}")
    print(json.dumps(report))
    sys.exit(1 if report["leaked"] else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_leaks", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--aborting", type=float, default=0.3, help="share of the clients that hang up")
    parser.add_argument("--clients", type=int, default=48, help="requests under way at most")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--routers", type=int, default=2)
    parser.add_argument("--ingresses", type=int, default=2, help="of which one is killed")
    parser.add_argument("--long-streams", type=int, default=12, help="that are open at the second kill")
    parser.add_argument("--layers", type=int, default=4, help="of the model: how long a step takes")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and of moments of hanging up")
    return parser


def _args(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Ranks that are often full: requests wait, and blocks are evicted."""
    return {
        "dp_size": options.ranks,
        "model": {"path": str(model), "served_name": "narrow", "dtype": "float32"},
        "engine": {
            "kernels": "torch",
            "cache": {"num_blocks": 1024},
            "scheduler": {"max_running_requests": 8, "max_waiting_requests": 10_000},
        },
        "resources": {"num_cpus": 0.5},
        "routing": {"num_routers": options.routers},
        "ingress": {"num_ingresses": options.ingresses},
    }


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    args = _args(options, write_served_model(folder / "model", options.layers))
    with running_ray(load_config(args)) as url, deployed(with_policy(args, "predicted_ttft", options.ranks)):
        watch = LoadWatch(options.routers, options.ranks)
        watch.wait_until_ready()
        traffic = _drive(options, url)
        settled = watch.settle(traffic.pop("ended_at"))
        streams = asyncio.run(_break_streams(url, options.long_streams))
        streams_settled = watch.settle(streams.pop("ended_at"))
    return {
        "options": vars(options),
        **traffic,
        **asdict(settled),
        "long_streams": {**streams, **asdict(streams_settled)},
        "leaked": None in (settled.seconds_until_zero, streams_settled.seconds_until_zero),
        "cpus": os.cpu_count(),
    }


def _drive(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """The crowd's requests, an ingress killed when half of them have ended."""
    killed_at: list[float] = []

    def ended(count: int) -> None:
        progress.update()
        if count == options.requests // 2:
            killed_at.append(_kill_ingress())

    async def run() -> Crowd:
        traffic = Traffic(
            num_requests=options.requests,
            num_clients=options.clients,
            aborting=options.aborting,
            token_ids=range(10, VOCAB),
            seed=options.seed,
        )
        async with _client(url) as http:
            crowd = Crowd(http, traffic, ended)
            await crowd.run()
            return crowd

    with tqdm(total=options.requests, unit="request", mininterval=1) as progress:
        started = time.monotonic()
        crowd = asyncio.run(run())
        ended_at = time.monotonic()
    after_kill = [failure.at - killed_at[0] for failure in crowd.failures]
    return {
        "requests": crowd.outcomes.total(),
        "answered": crowd.outcomes["answered"],
        "aborted": dict(crowd.aborted),
        "failed": dict(Counter(failure.what for failure in crowd.failures)),
        "failed_s_after_kill": [round(min(after_kill), 2), round(max(after_kill), 2)] if after_kill else None,
        "longest_request": {
            "seconds": round(crowd.longest.seconds, 2),
            "outcome": crowd.longest.outcome,
            "began_s_after_kill": round(crowd.longest.at - crowd.longest.seconds - killed_at[0], 2),
        },
        "requests_per_s": round(crowd.outcomes.total() / (ended_at - started), 1),
        "ended_at": ended_at,
    }


async def _break_streams(url: str, count: int) -> dict[str, Any]:
    """Opens long streams, kills an ingress, and hangs up on those that it didn't carry."""
    async with _client(url) as http, AsyncExitStack() as stack:
        lines: list[AsyncIterator[str]] = []
        for number in range(count):
            body = {"prompt": [number + 10] * 40, "max_tokens": LONG_STREAM_TOKENS}
            body |= {"ignore_eos": True, "stream": True}
            response = await stack.enter_async_context(http.stream("POST", "/v1/completions", json=body))
            lines.append(response.aiter_lines())
            await anext(lines[-1])
        killed_at = _kill_ingress()
        broken = sum(await asyncio.gather(*map(_breaks, lines)))
    return {"opened": count, "broken": broken, "ended_at": killed_at}


async def _breaks(lines: AsyncIterator[str]) -> bool:
    """Whether a stream ends at once; one that an ingress that lives carries would take longer."""
    try:
        async with asyncio.timeout(BREAKS_WITHIN_S):
            async for _ in lines:
                pass
    except httpx.HTTPError:
        return True
    except TimeoutError:
        return False
    return True


def _kill_ingress() -> float:
    """SIGKILL to one ingress; the monotonic time of that."""
    os.kill(replica_pids("Ingress", os.getpid())[0], signal.SIGKILL)
    return time.monotonic()


def _client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None))


class LoadWatch:
    """Asks every router and every rank what they count."""

    def __init__(self, num_routers: int, num_ranks: int) -> None:
        self._num_routers = num_routers
        self._num_ranks = num_ranks
        self._routers: Any = serve.get_deployment_handle("Router", APP_NAME)
        self._ranks: Any = serve.get_deployment_handle("DPRank", APP_NAME)

    def wait_until_ready(self) -> None:
        """Raises `TimeoutError` unless every router follows every rank soon."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise TimeoutError("the graph did not get ready")
            time.sleep(LOOK_EVERY_S)

    def settle(self, since: float) -> Settling:
        """Looks until nothing is counted anywhere, for `STAYS_S`; `since` is when the last client left."""
        zero_at: float | None = None
        held = None
        while True:
            found, num_tokens = self._held()
            now = time.monotonic()
            if found:
                zero_at, held = None, found
            else:
                zero_at = now if zero_at is None else zero_at
                if now - zero_at > STAYS_S:
                    return Settling(round(zero_at - since, 2), held, num_tokens)
            if zero_at is None and now - since > SETTLED_S:
                return Settling(None, held, num_tokens)
            time.sleep(LOOK_EVERY_S)

    def _is_ready(self) -> bool:
        views = self._routers.broadcast("view").results()
        exact = [[rank["trust"] for rank in view] for view in views]
        return exact == [["exact"] * self._num_ranks] * self._num_routers

    def _held(self) -> tuple[str | None, int]:
        """What is counted anywhere, in words, and the tokens in blocks that ranks hold for requests."""
        views = self._routers.broadcast("view").results()
        loads = [info.load for info in self._ranks.broadcast("describe").results()]
        counted = [[(rank["num_requests"], rank["waiting_tokens"]) for rank in view] for view in views]
        running = [(load.num_running_reqs, load.num_waiting_reqs, load.num_tokens) for load in loads]
        is_zero = not any(any(pair) for view in counted for pair in view) and not any(map(any, running))
        words = f"routers (requests, waiting tokens): {counted}; ranks (running, waiting, tokens): {running}"
        return None if is_zero else words, sum(load.num_tokens for load in loads)


if __name__ == "__main__":
    main()
