"""One run from its beginning to its report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.chaos.accounting import Ledger
from benchmarks.chaos.checks import Quiet, check_drain, check_quiet
from benchmarks.chaos.faults import Faults, Happened
from benchmarks.chaos.graph import READY_WITHIN_S, Graph, graph_args, running_graph
from benchmarks.chaos.plan import Fault, num_overlapping, storms_end_s
from benchmarks.chaos.requests import Asks, comparable_asks
from benchmarks.chaos.resources import Growth, Watch
from benchmarks.chaos.traffic import Traffic


@dataclass(frozen=True)
class Options:
    """What a run is made of.

    Attributes:
        seconds: that the traffic lasts.
        seed: of faults and requests.
        plan: the faults.
        ranks, routers, ingresses: of the graph at the beginning.
        max_ranks: that it may be resized to.
        clients: requests in flight.
        comparable_rounds: comparable requests of every kind.
    """

    seconds: float
    seed: int
    plan: Sequence[Fault]
    ranks: int
    routers: int
    ingresses: int
    max_ranks: int
    clients: int
    comparable_rounds: int


@dataclass(frozen=True)
class Finding:
    """What was found, and what is wrong about it.

    Attributes:
        ledger: every request.
        happened: every fault.
        growths: of the processes.
        quiet: the graph after the traffic.
        violations: everything that must not be.
    """

    ledger: Ledger
    happened: Sequence[Happened]
    growths: Sequence[Growth]
    quiet: Quiet
    violations: Sequence[str]


def run(options: Options, folder: Path, said: Callable[[str], object]) -> Finding:
    """Start the graph, do everything to it, and see what is left.

    Args:
        options: the run's.
        folder: where the model is written.
        said: is told what happens, for people to read.

    Raises:
        GraphError: the graph didn't start.
        NoAnswerError: it didn't answer a request before the first fault.
    """
    args = graph_args(
        folder,
        ranks=options.ranks,
        routers=options.routers,
        ingresses=options.ingresses,
        max_ranks=options.max_ranks,
    )
    with running_graph(args) as graph:
        return asyncio.run(_disturb(options, graph, said))


async def _disturb(options: Options, graph: Graph, said: Callable[[str], object]) -> Finding:
    limits = httpx.Limits(max_connections=None)
    asks = comparable_asks(options.seed, options.comparable_rounds)
    async with httpx.AsyncClient(base_url=graph.url, timeout=None, limits=limits) as http:
        try:
            await graph.deploy(graph.args)
            await graph.until(graph.is_whole, lambda: f"the graph is there: {graph.seen}", READY_WITHIN_S)
            said("the graph is there")
            traffic = Traffic(http, await Traffic(http, {}).send_all(asks))
            said(f"{len(asks)} answers to compare with")
            faults, watch = Faults(graph, options.plan, said), Watch()
            ledger = await _faults_under_traffic(options, traffic, Asks(options.seed, asks), faults, watch)
            said(f"{ledger.num_requests} requests have ended")
            quiet = await check_quiet(graph, time.monotonic())
            growths = watch.growths(ledger.started_at + storms_end_s(options.seconds))
            said("draining")
            drained = await check_drain(graph, traffic, asks[: options.clients])
        finally:
            await graph.close()
    violations = [
        *ledger.violations(),
        *(each.violation for each in faults.happened if each.violation),
        *quiet.violations,
        *(line for each in growths for line in each.violations()),
        *drained,
    ]
    if num_overlapping(intervals(faults.happened)) == 0:
        violations.append("no two faults overlapped")
    return Finding(ledger, faults.happened, growths, quiet, violations)


async def _faults_under_traffic(
    options: Options, traffic: Traffic, asks: Asks, faults: Faults, watch: Watch
) -> Ledger:
    """All faults under traffic; returns when both are over."""
    ledger = Ledger(ingress_deaths=faults.ingress_deaths)
    is_over = asyncio.Event()
    watching = asyncio.create_task(watch.run())
    clients = asyncio.create_task(
        traffic.run(options.clients, asks.draw, is_over, ledger, faults.was_rank_hurt)
    )
    await asyncio.gather(faults.run(), asyncio.sleep(options.seconds))
    is_over.set()
    await clients
    watching.cancel()
    return ledger


def intervals(happened: Sequence[Happened]) -> list[tuple[float, float]]:
    """When each fault that happened began, and when the graph had recovered from it."""
    return [each.interval for each in happened if each.interval is not None]
