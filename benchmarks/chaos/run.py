"""One run from its beginning to its report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.chaos.accounting import Ledger
from benchmarks.chaos.answers import Answer
from benchmarks.chaos.faults import Faults
from benchmarks.chaos.graph import READY_WITHIN_S, Graph, GraphError, graph_args, running_graph
from benchmarks.chaos.plan import Fault, num_overlapping
from benchmarks.chaos.requests import Asks, comparable_asks
from benchmarks.chaos.resources import Growth, Watch
from benchmarks.chaos.traffic import Traffic
from benchmarks.load_leaks.load_watch import LoadWatch

EQUAL_WITHIN_S = 30.0
"""After the traffic's end every router's index must be equal to every rank's cache within this time."""
WHOLE_WITHIN_S = 60.0

Json = dict[str, Any]


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


@dataclass
class Finding:
    """What was found, and what is wrong about it.

    Attributes:
        ledger: every request.
        faults: every fault.
        growths: of the processes.
        audit: the routers' last.
        seconds_until_zero: from the last client's end until no load was counted anywhere; None: it was.
        violations: everything that must not be.
    """

    ledger: Ledger
    faults: Faults
    growths: Sequence[Growth] = ()
    audit: Json | None = None
    seconds_until_zero: float | None = None
    violations: Sequence[str] = ()


def run(options: Options, folder: Path, said: Callable[[str], object]) -> Finding:
    """Start the graph, do everything to it, and see what is left.

    Args:
        options: the run's.
        folder: where the model is written.
        said: is told what happens, for people to read.

    Raises:
        GraphError: the graph didn't start.
    """
    args = graph_args(
        folder,
        ranks=options.ranks,
        routers=options.routers,
        ingresses=options.ingresses,
        max_ranks=options.max_ranks,
    )
    with running_graph(args) as graph:
        finding, ended_at = asyncio.run(_disturb(options, graph, said))
        violations = [*finding.violations]
        try:
            settling = LoadWatch(graph.num_routers, graph.num_ranks).settle(ended_at)
            finding.seconds_until_zero = settling.seconds_until_zero
            if settling.seconds_until_zero is None:
                violations.append(f"load is left: {settling.held}")
        except Exception as error:  # whatever it is, the report has to be written
            violations.append(f"the load can't be told: {error!r}")
        finding.violations = violations
    return finding


async def _disturb(options: Options, graph: Graph, said: Callable[[str], object]) -> tuple[Finding, float]:
    """The traffic and its faults; returns what was found, and when the last client left (monotonic)."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=graph.url, timeout=None, limits=limits) as http:
        try:
            await graph.deploy(graph.args)
            await graph.until(graph.is_whole, lambda: "the graph is there", READY_WITHIN_S)
            said("the graph is there")
            asks = comparable_asks(options.seed, options.comparable_rounds)
            expected = await Traffic(http, {}).send_all(asks)
            said(f"{len(expected)} answers to compare with")
            finding = await _faults_under_traffic(options, graph, http, expected, said)
            ended_at = time.monotonic()
            await _check(graph, finding)
            return finding, ended_at
        finally:
            await graph.close()


async def _faults_under_traffic(
    options: Options,
    graph: Graph,
    http: httpx.AsyncClient,
    expected: dict[str, Answer],
    said: Callable[[str], object],
) -> Finding:
    faults, watch = Faults(graph, options.plan, said), Watch()
    ledger = Ledger(ingress_deaths=faults.ingress_deaths)
    traffic = Traffic(http, expected)
    asks = Asks(options.seed, comparable_asks(options.seed, options.comparable_rounds))
    is_over = asyncio.Event()
    watching = asyncio.create_task(watch.run())
    clients = asyncio.create_task(
        traffic.run(options.clients, asks.draw, is_over, ledger, faults.was_rank_hurt)
    )
    await asyncio.gather(faults.run(), asyncio.sleep(options.seconds))
    is_over.set()
    await clients
    watching.cancel()
    said(f"{ledger.num_requests} requests have ended")
    growths = watch.growths(ledger.started_at + options.seconds / 2)
    return Finding(ledger, faults, growths)


async def _check(graph: Graph, finding: Finding) -> None:
    """What must be so when all is quiet."""
    violations = finding.ledger.violations()
    violations += [each.violation for each in finding.faults.happened if each.violation]
    violations += [line for each in finding.growths for line in each.violations()]
    if num_overlapping(intervals(finding.faults)) == 0:
        violations.append("no two faults overlapped")
    try:
        await graph.until(graph.is_whole, lambda: "all replicas are there", WHOLE_WITHIN_S)
    except GraphError as error:
        violations.append(str(error))

    async def is_equal() -> bool:
        finding.audit = await graph.get("/router/audit")
        routers = [] if finding.audit is None else finding.audit["routers"]
        return (
            finding.audit is not None and finding.audit["equal"] is True and len(routers) == graph.num_routers
        )

    try:
        await graph.until(is_equal, lambda: f"equal audits: {finding.audit}", EQUAL_WITHIN_S)
    except GraphError as error:
        violations.append(str(error))
    finding.violations = violations


def intervals(faults: Faults) -> list[tuple[float, float]]:
    """When each fault that happened began, and when the graph had recovered from it."""
    return [each.interval for each in faults.happened if each.interval is not None]
