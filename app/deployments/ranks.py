"""One look at all ranks: what every replica of the `DPRank` deployment says of itself."""

from __future__ import annotations

from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from app.deployments.messages import RankInfo
from app.errors import NoRankError

LOOK_TIMEOUT_S = 2.0


async def describe_ranks(ranks: DeploymentHandle[Any]) -> list[RankInfo]:
    """The ranks that answered, by number: none while none has started; one that just died is missing.

    Raises:
        NoRankError: some replica neither answered nor failed in time.
    """
    response = ranks.broadcast("describe")
    try:
        answers = await response.results_async(timeout_s=LOOK_TIMEOUT_S, return_exceptions=True)
    except DeploymentUnavailableError:
        return []
    except TimeoutError:
        raise NoRankError(f"a rank has not answered within {LOOK_TIMEOUT_S:g} s") from None
    infos = [answer for answer in answers if isinstance(answer, RankInfo)]
    return sorted(infos, key=lambda info: info.rank)
