"""Asks routers, and waits for one when none answers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from app.deployments.messages import Assignment, ChooseRequest, Json, RankReplica
from app.errors import NoRouterError

logger = logging.getLogger("ray.serve")

MAX_PAUSE_S = 1.0
"""Longest pause between two questions while no router answers."""

Answer = TypeVar("Answer")


class Routers(Protocol):
    """What dispatching needs of routers; `RouterClient` has it."""

    async def choose(self, request: ChooseRequest) -> Assignment:
        """Raises `NoRouterError` when none answers, another `RequestError` when it can't choose."""

    async def explain(self, request: ChooseRequest) -> Json:
        """Raises as `choose` does."""

    async def mark_failed(self, rank: int, replica_id: str) -> None:
        """Never raises."""

    async def release(self, request_id: str) -> None:
        """Never raises."""


class PatientRouters:
    """Numbers the choices of all requests, and asks again while no router answers.

    Args:
        routers: choose.
        patience_s: how long a router is waited for, once one hasn't answered.
        retry_s: pause after a router that didn't answer; it doubles each time, up to `MAX_PAUSE_S`.
    """

    def __init__(self, routers: Routers, *, patience_s: float, retry_s: float) -> None:
        self._routers = routers
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._choice_seqs = itertools.count()
        self._releases: set[asyncio.Task[Any]] = set()
        """Keeps tasks that aren't awaited from being collected before they end."""

    async def choose(self, request: ChooseRequest) -> tuple[Assignment, int]:
        """A rank for the request, and the number of this choice.

        Raises:
            RequestError: a router can't choose, or none answers.
        """
        return await self._ask(self._routers.choose, request)

    async def explain(self, request: ChooseRequest) -> Json:
        """The receipt of what a router would decide. Raises as `choose` does."""
        answer, _ = await self._ask(self._routers.explain, request)
        return answer

    async def mark_failed(self, replica: RankReplica) -> None:
        """This replica is gone or broken. It also drops what the routers had reserved there."""
        await self._routers.mark_failed(replica.rank, replica.replica_id)

    def release(self, request_id: str) -> None:
        """End the request's reservation, whichever router made it, without waiting for that."""
        task = asyncio.create_task(self._routers.release(request_id))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _ask(
        self, ask: Callable[[ChooseRequest], Awaitable[Answer]], request: ChooseRequest
    ) -> tuple[Answer, int]:
        deadline, pause_s = None, self._retry_s
        while True:
            choice_seq = next(self._choice_seqs)
            try:
                return await ask(replace(request, choice_seq=choice_seq)), choice_seq
            except NoRouterError:
                # Not from the beginning on: routers may have answered that no rank runs, for minutes.
                deadline = deadline or time.monotonic() + self._patience_s
                if time.monotonic() >= deadline:
                    raise NoRouterError("no router answers") from None
            logger.warning("no router for request %s yet", request.request_id)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
