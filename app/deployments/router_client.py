"""Calls to the routers: one typed method for each remote method."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from app.deployments.messages import (
    Assignment,
    ChooseRequest,
    Json,
    PeerReservation,
    RankReplica,
    Unroutable,
)
from app.errors import NoRouterError
from app.routing.decisions.decision_log import Outcome
from app.routing.tracking.standing import Standing

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

ROUTER_TIMEOUT_S = 2.0
"""Seconds that a router gets to answer; it answers from memory."""

AUDIT_TIMEOUT_S = 60.0
"""Seconds that the routers get to compare all ranks; one that doesn't answer takes 5 of them."""


_DEATHS = (RayActorError, asyncio.CancelledError)
"""Results of routers that have just died; one that is being stopped cancels its calls, and says so."""


class RouterMethods(Protocol):
    """The remote methods of a router; see `Router`."""

    async def choose(self, request: ChooseRequest) -> Assignment | Unroutable: ...
    async def explain(self, request: ChooseRequest) -> Json | Unroutable: ...
    async def release(self, request_id: str) -> None: ...
    async def mark_failed(self, rank: int, replica_id: str) -> None: ...
    async def record_outcomes(self, outcomes: Sequence[Outcome]) -> None: ...
    async def add_peer_reservations(self, router: str, reservations: Sequence[PeerReservation]) -> None: ...
    async def standings(self, replicas: Sequence[RankReplica]) -> list[Standing]: ...
    async def view(self) -> list[Json]: ...
    async def stats(self) -> Json: ...
    async def decisions(self, request_id: str) -> list[Json]: ...
    async def audit(self) -> Json: ...


RemoteMethod = Callable[Concatenate[RouterMethods, Parameters], Awaitable[Result]]


class RouterClient:
    """Calls one router, whichever Ray picks, or all of them.

    A call whose caller needs the answer raises `NoRouterError` when there is none. A call that only informs
    the routers never raises: a router that can't be reached starts again and has no state to correct.

    Args:
        handle: of the `Router` deployment.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        # Over gRPC a message costs a fraction of what Ray's object transport takes.
        self._handle: DeploymentHandle[Any] = handle.options(_by_reference=False)

    async def choose(self, request: ChooseRequest) -> Assignment:
        """The rank for a request, which a router has reserved there.

        Raises:
            NoRouterError: no router answers.
            RequestError: the router can't choose.
        """
        return _routed(await self._call_one(RouterMethods.choose, request))

    async def explain(self, request: ChooseRequest) -> Json:
        """The receipt of what `choose` would decide; nothing is reserved.

        Raises:
            NoRouterError: no router answers.
            RequestError: the router couldn't choose.
        """
        return _routed(await self._call_one(RouterMethods.explain, request))

    async def standings(self, replicas: Sequence[RankReplica]) -> list[Standing]:
        """How each of these replicas stands for one router, in the same order.

        Raises:
            NoRouterError: no router answers.
        """
        return await self._call_one(RouterMethods.standings, replicas)

    async def view(self) -> list[Json]:
        """One router's view of every rank that is there.

        Raises:
            NoRouterError: no router answers.
        """
        return await self._call_one(RouterMethods.view)

    async def views(self) -> list[list[Json]]:
        """Every router's view. Raises as `_answers_of_all`."""
        return await self._answers_of_all(ROUTER_TIMEOUT_S, RouterMethods.view)

    async def stats(self) -> list[Json]:
        """Every router's counters. Raises as `_answers_of_all`."""
        return await self._answers_of_all(ROUTER_TIMEOUT_S, RouterMethods.stats)

    async def decisions(self, request_id: str) -> list[list[Json]]:
        """Every router's receipts for one request. Raises as `_answers_of_all`."""
        return await self._answers_of_all(ROUTER_TIMEOUT_S, RouterMethods.decisions, request_id)

    async def audit(self) -> list[Json]:
        """Every router's index beside every rank's cache. Raises as `_answers_of_all`."""
        return await self._answers_of_all(AUDIT_TIMEOUT_S, RouterMethods.audit)

    async def release(self, request_id: str) -> None:
        """End the request's reservation, whichever router made it."""
        await self._inform_all(RouterMethods.release, request_id)

    async def mark_failed(self, rank: int, replica_id: str) -> None:
        """Report that this replica of a rank is gone or broken."""
        await self._inform_all(RouterMethods.mark_failed, rank, replica_id)

    async def record_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Report what became of requests."""
        await self._inform_all(RouterMethods.record_outcomes, outcomes)

    async def add_peer_reservations(self, router: str, reservations: Sequence[PeerReservation]) -> None:
        """Report what `router` has reserved. Ray calls all replicas, that one too: it knows its own name."""
        await self._inform_all(RouterMethods.add_peer_reservations, router, reservations)

    async def _call_one(
        self,
        method: RemoteMethod[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        call = self._handle.options(method_name=method.__name__)
        try:
            # Not `wait_for`: on Python 3.11 it can swallow a cancellation, and leave the request running.
            async with asyncio.timeout(ROUTER_TIMEOUT_S):
                result: Result = await call.remote(*args, **kwargs)
        except (TimeoutError, RayActorError, DeploymentUnavailableError):
            raise NoRouterError("no router answers") from None
        return result

    async def _answers_of_all(
        self,
        timeout_s: float,
        method: RemoteMethod[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> list[Result]:
        """The answers of all routers but those that have just died.

        Raises:
            NoRouterError: none answers, or one takes longer than `timeout_s` seconds.
            Exception: what one router's code raised, as it is: over gRPC Ray makes no RayTaskError of it.
        """
        try:
            results = await self._broadcast(timeout_s, method, *args, **kwargs)
        except TimeoutError:
            raise NoRouterError(f"not every router answers within {timeout_s:g} s") from None
        except DeploymentUnavailableError:
            results = []
        answers: list[Result] = []
        for result in results:
            if not isinstance(result, BaseException):
                answers.append(result)
            elif not isinstance(result, _DEATHS):
                raise result
        if not answers:
            raise NoRouterError("no router answers")
        return answers

    async def _inform_all(
        self,
        method: RemoteMethod[Parameters, None],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> None:
        with suppress(DeploymentUnavailableError, TimeoutError):
            await self._broadcast(ROUTER_TIMEOUT_S, method, *args, **kwargs)

    async def _broadcast(
        self,
        timeout_s: float,
        method: RemoteMethod[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> list[Result | BaseException]:
        """Every router's result, or what its call raised: one failure must not hide the other results."""
        response = self._handle.broadcast(method.__name__, *args, **kwargs)
        return await response.results_async(timeout_s=timeout_s, return_exceptions=True)


def _routed(answer: Result | Unroutable) -> Result:
    """A router's answer. Raises the error that it holds when the router couldn't choose."""
    if isinstance(answer, Unroutable):
        raise answer.error
    return answer
