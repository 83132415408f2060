"""Calls to the routers: one typed method for each remote method."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from grpc import RpcError
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from app.deployments.background import detached_task
from app.deployments.messages import (
    Assignment,
    ChooseRequest,
    FoundMisses,
    Json,
    PeerReservation,
    PromptNote,
    RankReplica,
    Unroutable,
)
from app.deployments.pace import Pace
from app.errors import NoRouterError
from app.routing.decisions.decision_log import Outcome
from app.routing.tracking.standing import Standing

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

ROUTER_TIMEOUT_S = 2.0
"""Seconds that all routers get to answer; they answer from memory."""

TRY_TIMEOUT_S = 1.0
"""Seconds that one router gets, before the next one is asked."""

SLOW_TIMEOUT_S = 4.0
"""The same for a choice, at most, where routers are alive but slow."""

MAX_CHOICES = 64
"""Choices that one caller waits for at a time. A router makes one after another, in a millisecond or two."""

REPORT_WAIT_S = 0.25
"""Seconds for which a request waits until the routers know of a failure; one that hangs learns it later."""

RETURN_INTERVAL_S = 1.0
"""Between two looks whether the nearest router answers again."""

AUDIT_TIMEOUT_S = 60.0
"""Seconds that the routers get to compare all ranks; one that doesn't answer takes 5 of them."""


_DEATHS = (RayActorError, RpcError, asyncio.CancelledError)
"""Results of routers that have just died; one that is being stopped cancels its calls, and says so."""


class RouterMethods(Protocol):
    """The remote methods of a router; see `Router`."""

    async def choose(self, request: ChooseRequest, *, nth: int = 0) -> Assignment | Unroutable: ...
    async def explain(self, request: ChooseRequest, *, nth: int = 0) -> Json | Unroutable: ...
    async def release(self, request_id: str) -> None: ...
    async def mark_failed(self, rank: int, replica_id: str) -> None: ...
    async def record_outcomes(self, outcomes: Sequence[Outcome]) -> None: ...
    async def add_peer_reservations(self, router: str, reservations: Sequence[PeerReservation]) -> None: ...
    async def standings(self, replicas: Sequence[RankReplica], *, nth: int = 0) -> list[Standing]: ...
    async def view(self, *, nth: int = 0) -> Json: ...
    async def stats(self) -> Json: ...
    async def decisions(self, request_id: str) -> list[Json]: ...
    async def audit(self) -> Json: ...
    async def misses(self) -> Json: ...
    async def note_prompts(self, notes: Sequence[PromptNote]) -> list[FoundMisses | None]: ...


RemoteMethod = Callable[Concatenate[RouterMethods, Parameters], Awaitable[Result]]


class RouterClient:
    """Calls one router, or all of them.

    One router is the nearest, as `NearestFirst` has them, until a call to it fails: from then on it is the
    next one, so that a router which hangs or is cut off costs only the calls that wait for it. Meanwhile the
    nearest is asked now and then, and is taken again once it answers.

    Routers may also be alive and slow, where a machine has too much to do. So choices, which come as fast as
    requests do, go out at a pace that follows their answers.

    A call whose caller needs the answer raises `NoRouterError` when there is none. A call that only informs
    the routers never raises: a router that can't be reached starts again and has no state to correct.

    Args:
        handle: of the `Router` deployment.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        # Over gRPC a message costs a fraction of what Ray's object transport takes.
        self._handle: DeploymentHandle[Any] = handle.options(_by_reference=False)
        self._nth = 0
        """How many routers are passed over, from the nearest on."""
        self._pace = Pace(most=MAX_CHOICES, timeout_s=TRY_TIMEOUT_S, longest_timeout_s=SLOW_TIMEOUT_S)
        self._returning: asyncio.Task[None] | None = None
        self._reports: set[asyncio.Task[None]] = set()
        """Keeps tasks that aren't awaited from being collected before they end."""

    async def choose(self, request: ChooseRequest) -> Assignment:
        """The rank for a request, which a router has reserved there.

        Raises:
            NoRouterError: no router answers.
            RequestError: the router can't choose.
        """
        return _routed(await self._call_one(self._pace.call(), RouterMethods.choose, request))

    async def explain(self, request: ChooseRequest) -> Json:
        """The receipt of what `choose` would decide; nothing is reserved.

        Raises:
            NoRouterError: no router answers.
            RequestError: the router couldn't choose.
        """
        return _routed(await self._call_one(self._pace.call(), RouterMethods.explain, request))

    async def standings(self, replicas: Sequence[RankReplica]) -> list[Standing]:
        """How each of these replicas stands for one router, in the same order.

        Raises:
            NoRouterError: no router answers.
        """
        return await self._call_one(asyncio.timeout(TRY_TIMEOUT_S), RouterMethods.standings, replicas)

    async def view(self) -> Json:
        """One router's name (`router`) and its view of every rank that is there (`ranks`).

        Raises:
            NoRouterError: the router doesn't answer.
        """
        return await self._call_one(asyncio.timeout(TRY_TIMEOUT_S), RouterMethods.view)

    async def views(self, num_routers: int) -> list[Json]:
        """The views of those of `num_routers` that answer within `TRY_TIMEOUT_S`, the nearest's first.

        Raises:
            NoRouterError: no router answers.
        """
        calls = [self._call_in_time(nth, RouterMethods.view) for nth in range(num_routers)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        # Where one doesn't answer, another may have answered in its place.
        views = {view["router"]: view for view in answers if not isinstance(view, BaseException)}
        if views:
            return list(views.values())
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, NoRouterError):
                raise answer
        raise NoRouterError("no router answers")

    async def stats(self) -> list[Json]:
        """Every router's counters. Raises as `_answers_of_all`."""
        return await self._answers_of_all(ROUTER_TIMEOUT_S, RouterMethods.stats)

    async def decisions(self, request_id: str) -> list[list[Json]]:
        """Every router's receipts for one request. Raises as `_answers_of_all`."""
        return await self._answers_of_all(ROUTER_TIMEOUT_S, RouterMethods.decisions, request_id)

    async def audit(self) -> list[Json]:
        """Every router's index beside every rank's cache. Raises as `_answers_of_all`."""
        return await self._answers_of_all(AUDIT_TIMEOUT_S, RouterMethods.audit)

    async def misses(self) -> list[Json]:
        """Every router's table of misses. Raises as `_answers_of_all`."""
        return await self._answers_of_all(ROUTER_TIMEOUT_S, RouterMethods.misses)

    async def note_prompts(self, notes: Sequence[PromptNote]) -> list[FoundMisses | None]:
        """Tell all routers of prompts; for each, the misses, where the router that has chosen answers."""
        with suppress(NoRouterError):
            answers = await self._answers_of_all(ROUTER_TIMEOUT_S, RouterMethods.note_prompts, notes)
            return [next(filter(None, of_note), None) for of_note in zip(*answers, strict=True)]
        return [None] * len(notes)

    async def release(self, request_id: str) -> None:
        """End the request's reservation, whichever router made it."""
        await self._inform_all(RouterMethods.release, request_id)

    async def mark_failed(self, rank: int, replica_id: str) -> None:
        """Report that this replica of a rank is gone or broken.

        Returns once all routers know it, or after `REPORT_WAIT_S`: the caller's request goes on elsewhere.
        """
        report = detached_task(self._inform_all(RouterMethods.mark_failed, rank, replica_id))
        self._reports.add(report)
        report.add_done_callback(self._reports.discard)
        await asyncio.wait([report], timeout=REPORT_WAIT_S)

    async def record_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Report what became of requests."""
        await self._inform_all(RouterMethods.record_outcomes, outcomes)

    async def add_peer_reservations(self, router: str, reservations: Sequence[PeerReservation]) -> None:
        """Report what `router` has reserved. Ray calls all replicas, that one too: it knows its own name."""
        await self._inform_all(RouterMethods.add_peer_reservations, router, reservations)

    async def _call_one(
        self,
        in_time: AbstractAsyncContextManager[object],
        method: RemoteMethod[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """One router's answer. `in_time` raises `TimeoutError` where that comes too late."""
        nth: int | None = None
        try:
            async with in_time:
                nth = self._nth
                return await self._call(nth, method, *args, **kwargs)
        except (NoRouterError, TimeoutError) as error:
            if nth is not None:
                self._pass_over(nth)
            raise _no_router(error) from None

    async def _call_in_time(
        self,
        nth: int,
        method: RemoteMethod[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """The answer of the router with this number. Raises `NoRouterError` if none is in `TRY_TIMEOUT_S`."""
        try:
            async with asyncio.timeout(TRY_TIMEOUT_S):
                return await self._call(nth, method, *args, **kwargs)
        except TimeoutError as error:
            raise _no_router(error) from None

    async def _call(
        self,
        nth: int,
        method: RemoteMethod[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """The answer of the router with this number. Raises `NoRouterError` where that can't give any."""
        call = self._handle.options(method_name=method.__name__)

        async def answer() -> Result:
            result: Result = await call.remote(*args, **kwargs, nth=nth)
            return result

        try:
            # Not `wait_for`: on Python 3.11 it can swallow a cancellation, and leave the request running.
            return await detached_task(answer())
        except (RayActorError, RpcError, DeploymentUnavailableError) as error:
            raise _no_router(error) from None
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise NoRouterError("the router is being stopped") from None

    def _pass_over(self, nth: int) -> None:
        """Call the next router from now on, until the nearest answers."""
        if nth != self._nth:  # another call has seen it already
            return
        self._nth += 1
        if self._returning is None or self._returning.done():
            self._returning = detached_task(self._return_to_nearest())

    async def _return_to_nearest(self) -> None:
        while self._nth:
            await asyncio.sleep(RETURN_INTERVAL_S)
            with suppress(NoRouterError):
                await self._call_in_time(0, RouterMethods.standings, ())
                self._nth = 0

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


def _no_router(error: Exception) -> NoRouterError:
    return error if isinstance(error, NoRouterError) else NoRouterError("no router answers")


def _routed(answer: Result | Unroutable) -> Result:
    """A router's answer. Raises the error that it holds when the router couldn't choose."""
    if isinstance(answer, Unroutable):
        raise answer.error
    return answer
