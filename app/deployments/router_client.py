"""How the routers are asked and told things: any of them, or every one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from app.errors import NoRankError

ROUTER_TIMEOUT_S = 2.0


class RouterClient:
    """Questions to routers that nothing but an answer depends on; dispatching is `Dispatcher`'s.

    Args:
        router: handle of the `Router` deployment.
    """

    def __init__(self, router: DeploymentHandle[Any]) -> None:
        self._router = router

    async def ask_one(self, method: str, *arguments: Any) -> Any:
        """Some router's answer.

        Raises:
            NoRankError: none answers.
        """
        try:
            async with asyncio.timeout(ROUTER_TIMEOUT_S):
                return await getattr(self._router, method).remote(*arguments)
        except (TimeoutError, RayActorError, DeploymentUnavailableError):
            raise NoRankError("no router answers") from None

    async def ask_all(self, method: str, *arguments: Any, timeout_s: float = ROUTER_TIMEOUT_S) -> list[Any]:
        """The answers of all routers but those that have just died.

        Raises:
            NoRankError: none answers, or one takes longer than `timeout_s` seconds.
            RayTaskError: one failed.
        """
        try:
            response = self._router.broadcast(method, *arguments)
            answers = await response.results_async(timeout_s=timeout_s, return_exceptions=True)
        except TimeoutError:
            raise NoRankError(f"not every router answers within {timeout_s:g} s") from None
        except DeploymentUnavailableError:
            answers = []
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, RayActorError):
                raise answer
        answers = [answer for answer in answers if not isinstance(answer, RayActorError)]
        if not answers:
            raise NoRankError("no router answers")
        return answers


async def tell_routers(router: DeploymentHandle[Any], method: str, *arguments: Any) -> None:
    """Calls every router; never raises: one that can't be reached starts anew and knows nothing anyway."""
    with suppress(DeploymentUnavailableError, TimeoutError):
        response = router.broadcast(method, *arguments)
        await response.results_async(timeout_s=ROUTER_TIMEOUT_S, return_exceptions=True)
