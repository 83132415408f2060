"""What it costs that several routers send each other their reservations, and how soon these arrive.

    python -m benchmarks.routers

Real routers on a Ray cluster of their own, called at fixed rates from this process; the ranks do nothing and
are only there to be chosen. Each rate is driven twice: with routers that send them, and without.
All processes share this machine, so one clock times them all. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from app.build import MAX_CONNECTIONS, QUIET
from app.checks.plan import CONTROL_CPUS
from app.config import AppConfig, load_config
from app.deployments.messages import Assignment, ChooseRequest, PeerReservation, RankInfo, Unroutable
from app.deployments.router.router import Router
from app.deployments.router_client import RouterClient
from app.events.endpoints import KvEvents, parse_kv_events
from app.events.schema import LoadStat
from benchmarks.arguments import list_of, positive
from benchmarks.graphs.graph import APP_NAME, running_ray

BLOCKS, BLOCK_SIZE = 64, 16
"""A prompt of 1,024 tokens."""
Timings = tuple[dict[str, float], dict[str, float], float]
"""Of one router: when each request was chosen for there, and received from others; CPU seconds."""


class SilentRank:
    """Describes itself and does nothing."""

    async def describe(self) -> RankInfo:
        """As `DPRank.describe`."""
        context = serve.get_replica_context()
        return RankInfo(
            rank=context.rank.rank,
            replica_id=context.replica_id.unique_id,
            publisher=None,
            load=LoadStat(0, 0, 0, 1, context.rank.rank, 0, 0, 1, 0, 0),
            max_prompt_tokens=1_000_000,
            node_ip="",
            pid=os.getpid(),
            num_blocks=1,
            num_cached_blocks=0,
            max_model_len=1_000_000,
            device="none",
            dtype="none",
            kernels="none",
        )


class TimedRouter(Router):
    """Records when it chose, and when it received what others had reserved."""

    async def __init__(  # type: ignore[misc]
        self, config: AppConfig, events: KvEvents, ranks: DeploymentHandle[Any]
    ) -> None:
        await super().__init__(config, events, ranks)
        self._own_id = serve.get_replica_context().replica_id.unique_id
        self._chosen: dict[str, float] = {}
        self._received: dict[str, float] = {}

    async def choose(self, request: ChooseRequest, *, nth: int = 0) -> Assignment | Unroutable:
        """As the real one."""
        answer = await super().choose(request, nth=nth)
        self._chosen[request.request_id] = time.monotonic()
        return answer

    async def add_peer_reservations(self, router: str, reservations: Sequence[PeerReservation]) -> None:
        """As the real one."""
        await super().add_peer_reservations(router, reservations)
        if router != self._own_id:
            self._received |= {each.request_id: time.monotonic() for each in reservations}

    async def timings(self) -> Timings:
        """When each request was chosen for here, and received from others; CPU seconds of this process."""
        return self._chosen, self._received, time.process_time()


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routers", description=__doc__)
    number = positive(int)
    parser.add_argument("--routers", type=number, default=2, help="router replicas")
    parser.add_argument("--ranks", type=number, default=4, help="ranks to choose from")
    parser.add_argument("--rates", type=list_of(number), default=[20, 100, 300], help="requests per second")
    parser.add_argument("--seconds", type=positive(float), default=5.0, help="of each rate")
    arguments = parser.parse_args()
    routing = {"num_routers": arguments.routers}
    config = load_config({"dp_size": arguments.ranks, "resources": {"num_cpus": 0.1}, "routing": routing})
    results: dict[str, dict[str, Any]] = {str(rate): {} for rate in arguments.rates}
    with running_ray(config):
        for sends in (False, True):
            router = _deploy(config, sends)
            for rate in arguments.rates:
                figures = asyncio.run(_drive(router, rate, arguments.seconds))
                results[str(rate)]["telling" if sends else "silent"] = figures
                print(f"{rate} requests/s, {'telling' if sends else 'silent'}: {figures}", flush=True)
            serve.delete(APP_NAME)
    print(json.dumps({"routers": arguments.routers, "rates": results}))


def _deploy(config: AppConfig, sends: bool) -> DeploymentHandle[Any]:
    """The routers, which send their reservations unless each takes itself for the only one."""
    alone = config.model_copy(update={"routing": config.routing.model_copy(update={"num_routers": 1})})
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": CONTROL_CPUS}, "logging_config": QUIET}
    ranks = serve.deployment(name="DPRank", num_replicas=config.dp_size, **options)(SilentRank).bind()
    router = serve.deployment(
        name="Router",
        num_replicas=config.routing.num_routers,
        max_ongoing_requests=MAX_CONNECTIONS,
        **options,
    )(TimedRouter).bind(config if sends else alone, parse_kv_events(config), ranks)
    handle: DeploymentHandle[Any] = serve.run(router, name=APP_NAME, route_prefix=None)
    return handle.options(_by_reference=False)


async def _drive(handle: DeploymentHandle[Any], rate: int, seconds: float) -> dict[str, float]:
    """Call at `rate`; every figure is of this run alone."""
    router = RouterClient(handle)
    await _choose(router, f"{rate}-warm")
    before = await _timings(handle)
    start, calls = time.monotonic(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
        calls.append(asyncio.create_task(_choose(router, f"{rate}-{number}")))
    answered = await asyncio.gather(*calls)
    after = await _timings(handle)
    cpu_s = sum(timings[2] for timings in after) - sum(timings[2] for timings in before)
    chosen = {request_id: at for timings in after for request_id, at in timings[0].items()}
    ids = {f"{rate}-{number}" for number in range(len(calls))}
    delays = [at - chosen[key] for timings in after for key, at in timings[1].items() if key in ids]
    figures = {"cpu_ms_per_request": 1e3 * cpu_s / len(calls), **_percentiles("choose", answered)}
    if delays:
        figures |= {"heard": len(delays) / len(calls), **_percentiles("delay", delays)}
    return {name: round(value, 3) for name, value in figures.items()}


async def _timings(handle: DeploymentHandle[Any]) -> list[Timings]:
    """Every router's timings."""
    return await handle.broadcast(TimedRouter.timings.__name__).results_async()


async def _choose(router: RouterClient, request_id: str) -> float:
    """Seconds until the router's answer."""
    started = time.monotonic()
    hashes = [hash((request_id, block)) for block in range(BLOCKS)]
    await router.choose(ChooseRequest(request_id, hashes, BLOCKS * BLOCK_SIZE))
    return time.monotonic() - started


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99])
    return {f"{name}_p50_ms": 1e3 * float(p50), f"{name}_p99_ms": 1e3 * float(p99)}


if __name__ == "__main__":
    main()
