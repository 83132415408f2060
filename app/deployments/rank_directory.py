"""The ranks that are there now, as every replica of the `DPRank` deployment describes itself."""

from __future__ import annotations

import asyncio

from app.deployments.background import detached_task
from app.deployments.messages import RankInfo
from app.deployments.rank_client import RankClient


class RankDirectory:
    """Asks every rank to describe itself.

    Args:
        ranks: calls them.
        timeout_s: what a rank gets to answer; a poll in which one doesn't takes twice as long.
    """

    def __init__(self, ranks: RankClient, *, timeout_s: float) -> None:
        self._ranks = ranks
        self._timeout_s = timeout_s
        self._known: frozenset[str] = frozenset()
        """Replica ids that answered the last poll."""

    async def poll(self) -> list[RankInfo]:
        """The ranks that answered in time, by number: none while none has started."""
        try:
            infos = await self._ranks.describe_all(timeout_s=self._timeout_s)
        except TimeoutError:
            infos = await self._describe_known()
        self._known = frozenset(info.replica_id for info in infos)
        return sorted(infos, key=lambda info: info.rank)

    async def _describe_known(self) -> list[RankInfo]:
        """A replica that hangs makes the whole broadcast fail: here each known replica is called by name."""
        calls = [
            detached_task(self._ranks.describe(replica_id=replica_id, timeout_s=self._timeout_s))
            for replica_id in self._known
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, RankInfo)]
