"""Waiting in tests: until a condition is true, and never longer than a deadline."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

Found = TypeVar("Found")
Message = str | Callable[[], object]
"""What was expected; a callable is called once the deadline is missed, to show the state at that time."""
DEADLINE_S = 20.0
INTERVAL_S = 0.01
"""Between two checks of a condition."""


class DeadlineMissed(AssertionError):
    """A condition was not true in time; the message has what it returned last."""


def wait_until(
    condition: Callable[[], Found | None],
    what: Message,
    timeout_s: float = DEADLINE_S,
    *,
    interval_s: float = INTERVAL_S,
) -> Found:
    """What `condition` returns, once that is true.

    Raises:
        DeadlineMissed: it was not true within `timeout_s`; `what` says in the message what was expected.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        _check(deadline, what, timeout_s, found)
        time.sleep(interval_s)
    return found


@overload
async def until(
    condition: Callable[[], Awaitable[Found | None]],
    what: Message,
    timeout_s: float = ...,
    *,
    interval_s: float = ...,
) -> Found: ...


@overload
async def until(
    condition: Callable[[], Found | None],
    what: Message,
    timeout_s: float = ...,
    *,
    interval_s: float = ...,
) -> Found: ...


async def until(
    condition: Callable[[], Any],
    what: Message,
    timeout_s: float = DEADLINE_S,
    *,
    interval_s: float = INTERVAL_S,
) -> Any:
    """As `wait_until`, while the event loop runs; `condition` may be a coroutine function too."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        _check(deadline, what, timeout_s, found)
        await asyncio.sleep(interval_s)


async def comes_true(condition: Callable[[], Any], timeout_s: float = 10.0) -> bool:
    """Whether `condition`, as of `until`, was true within `timeout_s`: to assert with a message made then."""
    try:
        await until(condition, "", timeout_s)
    except DeadlineMissed:
        return False
    return True


def _check(deadline: float, what: Message, timeout_s: float, found: object) -> None:
    if time.monotonic() >= deadline:
        expected = what if isinstance(what, str) else what()
        raise DeadlineMissed(f"not within {timeout_s} s: {expected}; last seen: {found!r}")
