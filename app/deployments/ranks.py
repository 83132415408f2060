"""Looks at all ranks: what every replica of the `DPRank` deployment says of itself."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from app.deployments.messages import RankInfo

LOOK_TIMEOUT_S = 2.0


class RankDirectory:
    """Asks every rank to describe itself.

    Args:
        ranks: handle of the `DPRank` deployment.
    """

    def __init__(self, ranks: DeploymentHandle[Any]) -> None:
        self._ranks = ranks
        self._known: frozenset[str] = frozenset()
        """Replica ids that answered the last look."""

    async def look(self) -> list[RankInfo]:
        """The ranks that answered in time, by number: none while none has started."""
        try:
            response = self._ranks.broadcast("describe")
            answers = await response.results_async(timeout_s=LOOK_TIMEOUT_S, return_exceptions=True)
        except DeploymentUnavailableError:
            answers = []
        except TimeoutError:
            # One replica that hangs spoils the whole broadcast: the others are asked by name.
            answers = await asyncio.gather(*map(self._ask, self._known), return_exceptions=True)
        infos = [answer for answer in answers if isinstance(answer, RankInfo)]
        self._known = frozenset(info.replica_id for info in infos)
        return sorted(infos, key=lambda info: info.rank)

    async def _ask(self, replica_id: str) -> Any:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            return await self._ranks.describe.remote(replica_id=replica_id)
