"""One look at all ranks: what every replica of the `DPRank` deployment says of itself."""

from __future__ import annotations

from typing import Any

from ray.serve.handle import DeploymentHandle

from app.deployments.messages import RankInfo

LOOK_TIMEOUT_S = 2.0


async def describe_ranks(ranks: DeploymentHandle[Any]) -> list[RankInfo]:
    """The ranks that answered, by number; one that died a moment ago is missing.

    Raises:
        TimeoutError: some replica neither answered nor failed in time.
    """
    response = ranks.broadcast("describe")
    answers = await response.results_async(timeout_s=LOOK_TIMEOUT_S, return_exceptions=True)
    infos = [answer for answer in answers if isinstance(answer, RankInfo)]
    return sorted(infos, key=lambda info: info.rank)
