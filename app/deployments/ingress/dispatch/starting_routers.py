"""Routers for a deployment whose ranks may all be gone: a request then has one started, and waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from app.deployments.ingress.dispatch.patient_routers import Routers
from app.deployments.messages import Assignment, ChooseRequest, Json
from app.errors import NoRankAliveError, RankCallError

logger = logging.getLogger("ray.serve")


class AnyRank(Protocol):
    """What is needed to have a rank started; `RankClient` has it."""

    async def wait_for_any(self, timeout_s: float) -> None:
        """Returns once some rank answers. Raises `RankCallError`, or `TimeoutError` after `timeout_s` s."""


class StartingRouters:
    """`Routers` whose choice, while no rank is alive, waits until one has started.

    What makes Ray start one is a call to any rank, which waits in this ingress: Ray's autoscaling hears of it
    at once. When the rank is there, the call returns, and a moment later the routers know the rank.

    Args:
        routers: choose.
        ranks: are called.
        start_timeout_s: how long a request waits.
        retry_s: pause between two questions for a rank that has just started.
    """

    def __init__(
        self, routers: Routers, ranks: AnyRank, *, start_timeout_s: float, retry_s: float = 0.2
    ) -> None:
        self._routers = routers
        self._ranks = ranks
        self._start_timeout_s = start_timeout_s
        self._retry_s = retry_s

    async def choose(self, request: ChooseRequest) -> Assignment:
        """See `Routers`.

        Raises:
            NoRankAliveError: none has started in time.
            RequestError: a router can't choose, or none answers.
        """
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            try:
                return await self._routers.choose(request)
            except NoRankAliveError:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    raise self._none_started() from None
                logger.info("no rank runs; request %s waits for one to start", request.request_id)
            await self._wait_for_any(request.request_id, remaining_s)
            await asyncio.sleep(self._retry_s)

    async def _wait_for_any(self, request_id: str, timeout_s: float) -> None:
        try:
            await self._ranks.wait_for_any(timeout_s)
        except TimeoutError:
            raise self._none_started() from None
        except RankCallError as error:
            # Such as one that started and failed; Ray starts the next.
            logger.warning("request %s waits for a rank: %s", request_id, error)

    def _none_started(self) -> NoRankAliveError:
        return NoRankAliveError(
            f"no rank runs, and none has started within {self._start_timeout_s:g} s "
            "(autoscaling.start_timeout_s); `serve status` says why"
        )

    async def explain(self, request: ChooseRequest) -> Json:
        """See `Routers`; waits for nothing."""
        return await self._routers.explain(request)

    async def mark_failed(self, rank: int, replica_id: str) -> None:
        """See `Routers`."""
        await self._routers.mark_failed(rank, replica_id)

    async def release(self, request_id: str) -> None:
        """See `Routers`."""
        await self._routers.release(request_id)
