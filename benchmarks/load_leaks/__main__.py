"""Whether load leaks: `python -m benchmarks.load_leaks --requests 10000 --aborting 0.3`.

A real graph of a tiny random model; clients, some of which disconnect, at every stage of a request; and one
ingress killed (SIGKILL) half-way. Afterwards every router must count no load, and no rank may hold a request
or a referenced block. Twice more an ingress is killed: under a burst, after which no further traffic could
hide what it left behind; and while long streams run, which ranks must end when no client receives them.

Progress goes to stderr; stdout gets one JSON object. Exit status 1: load leaked, or a request hung.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from app.config import load_config
from app.errors import KvbeaconError
from benchmarks.engine.narrow_model import VOCAB, write_served_model
from benchmarks.graphs.graph import deployed, running_ray, with_policy
from benchmarks.graphs.replicas import replica_pids
from benchmarks.load_leaks.disconnects import HUNG, Crowd, Traffic
from benchmarks.load_leaks.load_watch import LoadWatch, wait_until

LONG_STREAM_TOKENS = 1900
BREAKS_WITHIN_S = 1.0


def main() -> None:
    """Parse, run, print."""
    options = _parser().parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="kvbeacon-leaks-") as folder:
            report = _measure(options, Path(folder))
    except (KvbeaconError, TimeoutError, httpx.HTTPError) as error:
        sys.exit(f"benchmarks.load_leaks failed: {error!r}")
    print(json.dumps(report))
    sys.exit(1 if report["leaked"] or report["hung"] else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_leaks", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument(
        "--aborting", type=float, default=0.3, help="share of the requests whose client disconnects"
    )
    parser.add_argument("--clients", type=int, default=48, help="requests in flight at most")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--routers", type=int, default=2)
    parser.add_argument("--ingresses", type=int, default=2, help="ingresses; one of them is killed")
    parser.add_argument("--long-streams", type=int, default=12, help="streams that are open at the last kill")
    parser.add_argument("--layers", type=int, default=4, help="layers of the model; more make a step longer")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and of the moments of disconnecting")
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
        traffic = _drive(options, url, options.requests, options.aborting)
        parts = [traffic | asdict(watch.settle(time.monotonic()))]
        burst = _drive(options, url, 2 * options.clients, 0.0)
        parts.append(burst | asdict(watch.settle(time.monotonic())))
        streams, killed_at = asyncio.run(_break_streams(options, url))
        parts.append(streams | asdict(watch.settle(killed_at)))
    return {
        "options": vars(options),
        **parts[0],
        "burst": parts[1],
        "long_streams": parts[2],
        "leaked": any(part["seconds_until_zero"] is None for part in parts),
        "hung": traffic["failed"].get(HUNG, 0) + burst["failed"].get(HUNG, 0),
        "cpus": os.cpu_count(),
    }


def _drive(options: argparse.Namespace, url: str, num_requests: int, aborting: float) -> dict[str, Any]:
    """Send `num_requests` from a crowd of clients, and kill an ingress when half of them have ended."""
    killed_at: list[float] = []

    def ended(count: int) -> None:
        progress.update()
        if count == num_requests // 2:
            killed_at.append(_kill_ingress())

    async def run() -> Crowd:
        traffic = Traffic(
            num_requests=num_requests,
            num_clients=options.clients,
            aborting=aborting,
            token_ids=range(10, VOCAB),
            seed=options.seed,
        )
        async with _client(url) as http:
            crowd = Crowd(http, traffic, ended)
            await crowd.run()
            return crowd

    _wait_for_ingresses(options.ingresses)
    with tqdm(total=num_requests, unit="request", mininterval=1) as progress:
        started = time.monotonic()
        crowd = asyncio.run(run())
        seconds = time.monotonic() - started
    return _traffic_report(crowd, seconds, killed_at[0])


def _traffic_report(crowd: Crowd, seconds: float, killed_at: float) -> dict[str, Any]:
    after_kill = sorted(failure.at - killed_at for failure in crowd.failures)
    return {
        "requests": crowd.outcomes.total(),
        "answered": crowd.outcomes["answered"],
        "aborted": dict(crowd.aborted),
        "failed": dict(Counter(failure.what for failure in crowd.failures)),
        "failed_s_after_kill": [round(after_kill[0], 2), round(after_kill[-1], 2)] if after_kill else None,
        "longest_request": {
            "seconds": round(crowd.longest.seconds, 2),
            "outcome": crowd.longest.outcome,
            "began_s_after_kill": round(crowd.longest.at - crowd.longest.seconds - killed_at, 2),
        },
        "requests_per_s": round(crowd.outcomes.total() / seconds, 1),
    }


async def _break_streams(options: argparse.Namespace, url: str) -> tuple[dict[str, Any], float]:
    """Open long streams, kill an ingress, and close the streams of the others.

    Returns:
        How many streams were opened and how many broke, and when the ingress was killed.
    """
    _wait_for_ingresses(options.ingresses)
    async with _client(url) as http, AsyncExitStack() as stack:
        lines: list[AsyncIterator[str]] = []
        for number in range(options.long_streams):
            body = {"prompt": [number + 10] * 40, "max_tokens": LONG_STREAM_TOKENS}
            body |= {"ignore_eos": True, "stream": True}
            response = await stack.enter_async_context(http.stream("POST", "/v1/completions", json=body))
            lines.append(response.aiter_lines())
            await anext(lines[-1])
        killed_at = _kill_ingress()
        broken = sum(await asyncio.gather(*map(_breaks, lines)))
    return {"opened": len(lines), "broken": broken}, killed_at


async def _breaks(lines: AsyncIterator[str]) -> bool:
    """Whether a stream ends at once; one of an ingress that still runs would take longer."""
    try:
        async with asyncio.timeout(BREAKS_WITHIN_S):
            async for _ in lines:
                pass
    except httpx.HTTPError:
        return True
    except TimeoutError:
        return False
    return True


def _wait_for_ingresses(count: int) -> None:
    """Wait until Ray has replaced those that were killed."""
    wait_until(lambda: len(replica_pids("Ingress", os.getpid())) >= count, "no ingress came back")


def _kill_ingress() -> float:
    """Kill one ingress with SIGKILL; returns the monotonic time of that."""
    os.kill(replica_pids("Ingress", os.getpid())[0], signal.SIGKILL)
    return time.monotonic()


def _client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None))


if __name__ == "__main__":
    main()
