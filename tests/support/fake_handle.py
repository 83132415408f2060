"""A Ray Serve handle without Ray: every replica's answers are written down beforehand.

As with Ray, what a replica's code raises comes as a `RayTaskError` over the object transport, and as it is
over gRPC (`_by_reference=False`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from ray import exceptions
from ray.serve.exceptions import DeploymentUnavailableError

# Ray's constructors have no types, or private ones.
_ray: Final[Any] = exceptions
_unavailable: Final[Any] = DeploymentUnavailableError
DEAD: Final[exceptions.RayActorError] = _ray.RayActorError()
GONE: Final[exceptions.RayActorError] = _ray.ActorUnavailableError("the replica doesn't answer", None)
BUG: Final = ValueError("bug")
FAILED: Final[exceptions.RayTaskError] = _ray.RayTaskError("method", "its traceback", BUG)
NO_REPLICA: Final[DeploymentUnavailableError] = _unavailable(None)
BROKEN: Final[exceptions.RayError] = _ray.RaySystemError("the transport broke")


class FakeHandle:
    """As much of a `DeploymentHandle` as the clients use.

    Args:
        answers: of each remote method, one per replica: what it returns, or an exception that it raises. A
            call to one replica gets the first, or with `nth` the one that many behind it, and waits for it
            where it is a future. None: Ray knows of no replica of the deployment.

    Attributes:
        calls: method, arguments and keyword arguments of every call, in order.
    """

    def __init__(self, answers: Mapping[str, Sequence[Any]] | None) -> None:
        self._answers = answers
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._by_reference = True

    def options(
        self, *, method_name: str | None = None, _by_reference: bool | None = None, **options: Any
    ) -> Self | FakeMethod:
        handle = type(self).__new__(type(self))
        vars(handle).update(vars(self))
        if _by_reference is not None:
            handle._by_reference = _by_reference
        return handle if method_name is None else FakeMethod(handle, method_name)

    def __getattr__(self, name: str) -> FakeMethod:
        return FakeMethod(self, name)

    def broadcast(self, method_name: str, *args: Any, **kwargs: Any) -> FakeBroadcast:
        return FakeBroadcast(self.results(method_name, args, kwargs))

    def results(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """What the caller gets from each replica."""
        answers = self.called(name, args, kwargs)
        if self._by_reference:
            return answers
        return [each.cause if isinstance(each, exceptions.RayTaskError) else each for each in answers]

    def called(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Record the call. Returns all replicas' answers."""
        self.calls.append((name, args, kwargs))
        if self._answers is None:
            raise NO_REPLICA
        return self._answers[name]


class FakeMethod:
    """A handle of one remote method."""

    def __init__(self, handle: FakeHandle, name: str) -> None:
        self._handle = handle
        self._name = name

    async def remote(self, *args: Any, **kwargs: Any) -> Any:
        answers = self._handle.results(self._name, args, kwargs)
        answer = answers[kwargs.get("nth", 0) % len(answers)]
        if isinstance(answer, asyncio.Future):
            return await asyncio.shield(answer)  # other calls wait for it too
        if isinstance(answer, BaseException):
            raise answer
        return answer


class FakeBroadcast:
    """A call to every replica. A `TimeoutError` or a future among the answers is a replica that hangs.

    One whose answer is an event answers once that is set.
    """

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = answers

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert return_exceptions
        for answer in self._answers:
            if isinstance(answer, TimeoutError | asyncio.Future):
                raise TimeoutError
            if isinstance(answer, asyncio.Event):
                await answer.wait()
        return list(self._answers)
