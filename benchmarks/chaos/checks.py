"""What must be so when all is quiet again: all there, indexes true, no load; and what a drain must spare."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import NoRouterError, RankCallError
from benchmarks.chaos.graph import Graph, GraphError
from benchmarks.chaos.requests import Ask
from benchmarks.chaos.traffic import Traffic
from benchmarks.load_leaks.load_watch import LoadWatch, Settling

WHOLE_WITHIN_S = 60.0
EQUAL_WITHIN_S = 30.0
"""After the traffic's end every router's index must be equal to every rank's cache within this time."""
DRAINED_AFTER_S = 0.5
"""After the requests of a drain are sent: they have begun."""


@dataclass(frozen=True)
class Quiet:
    """The graph without traffic.

    Attributes:
        is_audited: whether every router's index was equal to every rank's cache.
        seconds_until_zero: from the last client's end until no load was counted anywhere; None: it was.
        violations: everything that must not be.
    """

    is_audited: bool
    seconds_until_zero: float | None
    violations: Sequence[str]


async def check_quiet(graph: Graph, since: float) -> Quiet:
    """What is left `since` the last client's end (monotonic)."""
    violations: list[str] = []
    is_audited, audit = False, ""
    seconds_until_zero = None

    async def is_equal() -> bool:
        nonlocal is_audited, audit
        is_audited, audit = await graph.audit()
        return is_audited

    try:
        await graph.until(graph.is_whole, lambda: f"all is there: {graph.seen}", WHOLE_WITHIN_S)
        settling = await asyncio.to_thread(_settle, graph, since)
        seconds_until_zero = settling.seconds_until_zero
        if seconds_until_zero is None:
            violations.append(f"load is left: {settling.held}")
        await graph.until(is_equal, lambda: f"every audit equal: {audit}", EQUAL_WITHIN_S)
    except (GraphError, NoRouterError, RankCallError, TimeoutError) as error:
        violations.append(f"when all was quiet: {error}")
    return Quiet(is_audited, seconds_until_zero, violations)


async def check_drain(graph: Graph, traffic: Traffic, asks: Sequence[Ask]) -> list[str]:
    """Remove the application while `asks` are answered; returns a line for each that got no whole answer."""
    answers = [asyncio.create_task(traffic.send(ask)) for ask in asks]
    await asyncio.wait(answers, timeout=DRAINED_AFTER_S)
    await graph.deploy(None)
    results = await asyncio.gather(*answers)
    return [f"drained: {each.name}: {each.cause}" for each in results if each.ended != "ok"]


def _settle(graph: Graph, since: float) -> Settling:
    return LoadWatch(graph.num_routers, graph.num_ranks).settle(since)
