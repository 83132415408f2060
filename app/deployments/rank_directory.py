"""Looks at all ranks: what every replica of the `DPRank` deployment says of itself."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from app.deployments.detached_task import detached_task
from app.deployments.messages import RankInfo


class RankDirectory:
    """Asks every rank to describe itself.

    Args:
        ranks: handle of the `DPRank` deployment.
        timeout_s: what a rank gets to answer; a look in which one doesn't takes twice as long.
    """

    def __init__(self, ranks: DeploymentHandle[Any], *, timeout_s: float) -> None:
        self._ranks = ranks
        self._timeout_s = timeout_s
        self._known: frozenset[str] = frozenset()
        """Replica ids that answered the last look."""

    async def poll(self) -> list[RankInfo]:
        """The ranks that answered in time, by number: none while none has started."""
        try:
            response = self._ranks.broadcast("describe")
            answers = await response.results_async(timeout_s=self._timeout_s, return_exceptions=True)
        except DeploymentUnavailableError:
            answers = []
        except TimeoutError:
            # One replica that hangs spoils the whole broadcast: the others are asked by name.
            asked = [detached_task(self._ask(replica_id)) for replica_id in self._known]
            answers = await asyncio.gather(*asked, return_exceptions=True)
        infos = [answer for answer in answers if isinstance(answer, RankInfo)]
        self._known = frozenset(info.replica_id for info in infos)
        return sorted(infos, key=lambda info: info.rank)

    async def _ask(self, replica_id: str) -> Any:
        async with asyncio.timeout(self._timeout_s):
            return await self._ranks.describe.remote(replica_id=replica_id)
