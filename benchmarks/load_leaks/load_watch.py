"""The load that all routers and ranks of a running graph count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from ray import serve

from app.deployments.messages import Json
from app.deployments.rank_client import RankClient
from app.deployments.router_client import RouterClient
from benchmarks.graphs.graph import APP_NAME

READY_WITHIN_S = 120.0
ANSWER_WITHIN_S = 10.0
"""Within this every rank must describe itself."""
SETTLED_S = 10.0
"""Within this all load must be gone."""
STAYS_S = 2.5
"""And stay gone: longer than the time between two reports of a rank, or two polls of a router."""
POLL_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Settling:
    """The load that was left once there were no clients any more.

    Attributes:
        seconds_until_zero: from the last client's end, or from the kill under long streams, until load was
            zero everywhere and stayed so; None if it didn't become so within `SETTLED_S`.
        held: what routers and ranks still counted at the last poll that found any load.
        tokens_in_held_blocks: summed over the ranks, at the last poll.
    """

    seconds_until_zero: float | None
    held: str | None
    tokens_in_held_blocks: int


def wait_until(condition: Callable[[], bool], failure: str) -> None:
    """Wait until `condition` is true.

    Raises:
        TimeoutError: it isn't within `READY_WITHIN_S`; the message is `failure`.
    """
    deadline = time.monotonic() + READY_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(failure)
        time.sleep(POLL_INTERVAL_S)


class LoadWatch:
    """Asks every router and every rank for the load that it counts."""

    def __init__(self, num_routers: int, num_ranks: int) -> None:
        self._num_routers = num_routers
        self._num_ranks = num_ranks
        self._routers = RouterClient(serve.get_deployment_handle("Router", APP_NAME))
        self._ranks = RankClient(serve.get_deployment_handle("DPRank", APP_NAME))

    def wait_until_ready(self) -> None:
        """Wait until every router follows every rank.

        Raises:
            TimeoutError: they don't in time.
            NoRouterError: the routers don't answer.
        """
        wait_until(lambda: asyncio.run(self._is_ready()), "the graph did not get ready")

    def settle(self, since: float) -> Settling:
        """Poll until no load has been counted for `STAYS_S`; `since` is when the last client left.

        Raises:
            NoRouterError: no router answers.
        """
        zero_at: float | None = None
        held = None
        while True:
            found, num_tokens = asyncio.run(self._held())
            now = time.monotonic()
            if found:
                zero_at, held = None, found
            else:
                zero_at = now if zero_at is None else zero_at
                if now - zero_at > STAYS_S:
                    return Settling(round(zero_at - since, 2), held, num_tokens)
            if zero_at is None and now - since > SETTLED_S:
                return Settling(None, held, num_tokens)
            time.sleep(POLL_INTERVAL_S)

    async def _is_ready(self) -> bool:
        views = await self._views()
        exact = [[rank["trust"] for rank in view] for view in views]
        return exact == [["exact"] * self._num_ranks] * self._num_routers

    async def _views(self) -> list[list[Json]]:
        return [view["ranks"] for view in await self._routers.views(self._num_routers)]

    async def _held(self) -> tuple[str | None, int]:
        """What is counted anywhere, in words, and the tokens in blocks that ranks hold for requests."""
        views = await self._views()
        ranks = await self._ranks.describe_all(timeout_s=ANSWER_WITHIN_S) or []
        loads = [info.load for info in ranks]
        # Both leave out replicas that have died or answer late; their load must not count as zero.
        if (len(views), len(loads)) != (self._num_routers, self._num_ranks):
            return f"only {len(views)} routers and {len(loads)} ranks answer", 0
        counted = [[(rank["num_requests"], rank["waiting_tokens"]) for rank in view] for view in views]
        running = [(load.num_running_reqs, load.num_waiting_reqs, load.num_tokens) for load in loads]
        is_zero = not any(any(pair) for view in counted for pair in view) and not any(map(any, running))
        words = f"routers (requests, waiting tokens): {counted}; ranks (running, waiting, tokens): {running}"
        return None if is_zero else words, sum(load.num_tokens for load in loads)
