"""Watches the replicas that work on this ingress' requests, and moves requests away from those that can't.

    live attempts ──▶ a router: how do their replicas stand? ──▶ not usable? ask the replica itself
          ▲                                                                │
          └── move those that must leave, if some rank can take them ◀─────┘

What a router says isn't enough to break an answer that goes on: it may be the router that is cut off. So a
replica that it doesn't find usable is asked here too, and a stream that goes on is left alone:

- The replica answers, and can serve: nothing is done.
- It is no longer among those that Ray has: it died, and its calls are about to break off, or it drains, as
  Ray lets running calls go on. A request that waits there has nothing to lose and leaves at once. One that
  gets tokens leaves when the replica has drained for `drain_timeout_s`, so that it stops and frees its place.
- It doesn't answer, or says that it can serve nothing: what gets no tokens leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Protocol

from app.deployments.background import detached_task
from app.deployments.ingress.dispatch.live_attempts import LiveAttempts
from app.deployments.messages import Json, RankInfo, RankReplica
from app.errors import NoRouterError, RankCallError, RankGoneError
from app.routing.tracking.standing import Standing

logger = logging.getLogger("ray.serve")

INTERVAL_S = 1.0
"""Between two looks at the replicas."""
QUIET_S = 1.5
"""A request that has got nothing for so long has no stream that could be broken: a decode step is shorter."""
ANSWER_TIMEOUT_S = 1.0
"""What a replica gets to describe itself; it does so at once, also during a long step."""


class Routers(Protocol):
    """What watching needs of routers; `RouterClient` has it."""

    async def standings(self, replicas: Sequence[RankReplica]) -> list[Standing]:
        """Raises `NoRouterError`."""

    async def view(self) -> Json:
        """Raises `NoRouterError`."""


class Ranks(Protocol):
    """What watching needs of ranks; `RankClient` has it."""

    async def describe(self, *, replica_id: str, timeout_s: float) -> RankInfo:
        """Raises `RankCallError` and `TimeoutError`."""


class _Answer(Enum):
    """How a replica answered when it was asked here."""

    SERVES = auto()
    LEFT = auto()
    """It is not among the replicas that Ray has."""
    SILENT = auto()
    """It didn't answer, or can serve nothing."""


class RankWatch:
    """Looks at the replicas as long as there are live attempts.

    Args:
        live: the attempts.
        routers: say how replicas stand.
        ranks: are asked themselves.
        model: `model.path` of the ingress: ranks that a redeploy gives another one can't take its requests.
        drain_timeout_s: seconds that requests may go on at a replica that drains.
        interval_s: between two looks.
        quiet_s: what has got nothing for so long is taken for a request that waits.
    """

    def __init__(
        self,
        live: LiveAttempts,
        routers: Routers,
        ranks: Ranks,
        *,
        model: str,
        drain_timeout_s: float,
        interval_s: float = INTERVAL_S,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._live = live
        self._routers = routers
        self._ranks = ranks
        self._model = model
        self._drain_timeout_s = drain_timeout_s
        self._interval_s = interval_s
        self._quiet_s = quiet_s
        self._left_at: dict[RankReplica, float] = {}
        """When a replica was first found to have left."""
        self._watching: asyncio.Task[Any] | None = None
        live.when_some_begin(self._wake)

    def _wake(self) -> None:
        if self._watching is None or self._watching.done():
            self._watching = detached_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            if not self._live:
                self._left_at.clear()
                return
            try:
                await self._look()
            except Exception:
                logger.exception("looking at the ranks of requests failed; trying again")

    async def _look(self) -> None:
        replicas = self._live.replicas()
        try:
            standings = await self._routers.standings(replicas)
        except NoRouterError:
            return
        suspects = {
            replica: standing
            for replica, standing in zip(replicas, standings, strict=True)
            if standing.state != "usable"
        }
        self._left_at = {replica: at for replica, at in self._left_at.items() if replica in suspects}
        if suspects and await self._some_rank_is_usable():
            answers = await asyncio.gather(*(detached_task(self._ask(replica)) for replica in suspects))
            for (replica, standing), answer in zip(suspects.items(), answers, strict=True):
                self._judge(replica, standing, answer)

    async def _some_rank_is_usable(self) -> bool:
        """Whether a request that leaves its replica finds another. Staying may help it, waiting doesn't."""
        try:
            view = await self._routers.view()
        except NoRouterError:
            return False
        return any(each["unavailable"] is None and each["model"] == self._model for each in view["ranks"])

    async def _ask(self, replica: RankReplica) -> _Answer:
        try:
            info = await self._ranks.describe(replica_id=replica.replica_id, timeout_s=ANSWER_TIMEOUT_S)
        except RankGoneError:
            return _Answer.LEFT
        except (RankCallError, TimeoutError):
            return _Answer.SILENT
        return _Answer.SERVES if info.unavailable is None else _Answer.SILENT

    def _judge(self, replica: RankReplica, standing: Standing, answer: _Answer) -> None:
        now = time.monotonic()
        if answer is _Answer.LEFT:
            left_at = self._left_at.setdefault(replica, now)
            has_drained = now - left_at >= self._drain_timeout_s
            self._move(replica, "its replica is being replaced", planned=True, quiet_only=not has_drained)
            return
        self._left_at.pop(replica, None)
        if answer is _Answer.SILENT:
            self._move(replica, standing.reason, planned=False, quiet_only=True)

    def _move(self, replica: RankReplica, reason: str, *, planned: bool, quiet_only: bool) -> None:
        """Move the replica's attempts, or those that have got nothing for a while."""
        latest = time.monotonic() - self._quiet_s
        moved = [each for each in self._live.on(replica) if not quiet_only or each.heard_at <= latest]
        for attempt in moved:
            attempt.move(reason, planned=planned)
        if moved:
            names = ", ".join(attempt.request_id for attempt in moved)
            logger.info("rank %d: %d requests go elsewhere: %s (%s)", replica.rank, len(moved), reason, names)
