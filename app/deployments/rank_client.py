"""Calls to the ranks: one typed method for each remote method, and the transport's errors as our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, Protocol, Self

from grpc import RpcError
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from app.deployments.messages import Claim, NotAddressed, RankInfo, RankMessage
from app.errors import RankCallError, RankFailedError, RankGoneError, RankUnreachableError
from app.events.snapshot import CacheSnapshot
from app.generation import GenerateRequest

_TRANSPORT_ERRORS = (RayError, RayServeException, RpcError)


class RankMethods(Protocol):
    """The remote methods of a rank; see `DPRank`."""

    async def describe(
        self, *, replica_id: str | None = None, other_than: frozenset[str] = frozenset()
    ) -> RankInfo | NotAddressed: ...
    async def claims(self, claim: Claim) -> Claim: ...
    async def snapshot(self, *, replica_id: str) -> CacheSnapshot | None: ...
    async def reset_cache(self, *, replica_id: str) -> bool | None: ...
    def generate(self, request: GenerateRequest, *, replica_id: str) -> AsyncIterator[RankMessage]: ...


class RankMessages(AsyncIterator[RankMessage]):
    """What one `generate` call sends; ends when the rank ends it, also too early.

    Raises (while iterating):
        RankCallError: the call broke off; see there.
    """

    def __init__(self, response: DeploymentResponseGenerator[RankMessage]) -> None:
        self._response = response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RankMessage:
        with _own_errors():
            try:
                return await anext(self._response)
            except (StopAsyncIteration, *_TRANSPORT_ERRORS):
                raise
            except Exception as error:
                # Over gRPC Ray raises what the rank's code raised as it is, not as a RayTaskError.
                raise RankFailedError(f"{type(error).__name__}: {error}") from error

    def cancel(self) -> None:
        """Abort the request on its rank, unless it has ended there."""
        self._response.cancel()


class RankClient:
    """Calls one rank by its replica's id, or all ranks.

    A caller that makes several calls to named replicas at once, within one request, wraps each in
    `detached_task`.

    Args:
        handle: of the `DPRank` deployment.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        # Over gRPC a message costs a fraction of what Ray's object transport takes.
        self._streams: DeploymentHandle[Any] = handle.options(stream=True, _by_reference=False)

    def generate(self, request: GenerateRequest, *, replica_id: str) -> RankMessages:
        """Start a request on a rank. Always cancel what this returns, also after its end.

        A request that changes its rank makes several calls, of which an earlier one may not have left yet. In
        a context of its own each has another id for Ray: see `detached_task`.
        """
        response = Context().run(self._streams.generate.remote, request, replica_id=replica_id)
        assert isinstance(response, DeploymentResponseGenerator), response
        return RankMessages(response)

    async def describe(self, *, replica_id: str, timeout_s: float) -> RankInfo:
        """One rank as it describes itself.

        Raises:
            RankCallError: the replica is gone or its engine has failed.
            TimeoutError: no answer within `timeout_s` seconds.
        """
        with _own_errors():
            async with asyncio.timeout(timeout_s):
                answer: RankInfo | NotAddressed = await self._handle.describe.remote(replica_id=replica_id)
        if isinstance(answer, NotAddressed):
            raise RankGoneError(f"replica {replica_id} is gone")
        return answer

    async def describe_other(self, known: Collection[str], *, timeout_s: float) -> RankInfo | None:
        """Some rank whose replica isn't among `known`, as it describes itself; None if there is no other.

        Raises:
            RankCallError: the replica that was asked is gone or its engine has failed.
            TimeoutError: no answer within `timeout_s` seconds. Where there is no other any is asked, perhaps
                one that hangs.
        """
        call = self._handle.describe
        with _own_errors():
            async with asyncio.timeout(timeout_s):
                answer: RankInfo | NotAddressed = await call.remote(other_than=frozenset(known))
        return None if isinstance(answer, NotAddressed) else answer

    async def describe_all(self, *, timeout_s: float) -> list[RankInfo] | None:
        """All ranks as they describe themselves, without those that fail; None while Ray has none at all.

        Raises:
            TimeoutError: one doesn't answer within `timeout_s` seconds; the others' answers are lost then.
        """
        try:
            response = self._handle.broadcast(RankMethods.describe.__name__)
            answers = await response.results_async(timeout_s=timeout_s, return_exceptions=True)
        except DeploymentUnavailableError:
            return None
        return [answer for answer in answers if isinstance(answer, RankInfo)]

    async def wait_for_any(self, timeout_s: float) -> None:
        """Returns once some rank answers. Where there is none, Ray's autoscaling sees that one is wanted.

        Raises:
            RankCallError: the rank that was there is gone or its engine has failed.
            TimeoutError: none has answered within `timeout_s` seconds.
        """
        with _own_errors():
            async with asyncio.timeout(timeout_s):
                await self._handle.describe.remote()

    async def exchange_claims(self, claim: Claim, *, timeout_s: float) -> list[Claim]:
        """Tell every replica that runs what one of them claims, and hear what they claim.

        Raises:
            TimeoutError: one doesn't answer within `timeout_s` seconds; the others' answers are lost then.
        """
        try:
            response = self._handle.broadcast(RankMethods.claims.__name__, claim)
            answers = await response.results_async(timeout_s=timeout_s, return_exceptions=True)
        except DeploymentUnavailableError:
            return []
        return [answer for answer in answers if isinstance(answer, Claim)]

    async def snapshot(self, replica_id: str) -> CacheSnapshot:
        """A rank's whole cache content at a known sequence number.

        Raises:
            RankCallError: the replica is gone or its engine has failed.
        """
        with _own_errors():
            snapshot: CacheSnapshot | None = await self._handle.snapshot.remote(replica_id=replica_id)
        if snapshot is None:
            raise RankGoneError(f"replica {replica_id} is gone")
        return snapshot

    async def reset_cache(self, replica_id: str, *, timeout_s: float) -> bool:
        """Let a rank forget all cached blocks; whether it did, as some engines can only when idle.

        Raises:
            RankCallError: the replica is gone, its engine has failed, or it can't do this.
            TimeoutError: no answer within `timeout_s` seconds.
        """
        with _own_errors():
            async with asyncio.timeout(timeout_s):
                done: bool | None = await self._handle.reset_cache.remote(replica_id=replica_id)
        if done is None:
            raise RankGoneError(f"replica {replica_id} is gone")
        return done


@contextmanager
def _own_errors() -> Iterator[None]:
    """Replaces errors of Ray and gRPC: callers know neither, and tests of them need none."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # A replica that is being stopped cancels its calls, and that comes here as it is.
        raise RankGoneError("the replica cancelled the call") from error
    except RayTaskError as error:
        raise RankFailedError(str(error)) from error
    except ActorUnavailableError as error:
        raise RankUnreachableError(str(error)) from error
    except (RayActorError, DeploymentUnavailableError) as error:
        raise RankGoneError(str(error)) from error
    except _TRANSPORT_ERRORS as error:
        raise RankCallError(str(error)) from error
