"""Work off the path of the request that is being served: detached tasks, and messages sent in batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def detached_task(work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """A task for `work` that doesn't belong to the request that is being served.

    Needed wherever one request makes several calls to named replicas at once. Ray Serve gives all calls of
    one request the same internal id, and its request router (2.60) finds a waiting call by that id: of two
    that wait at the same time one is never sent, and later calls stall.
    """
    return asyncio.create_task(work, context=Context())


class BatchSender(Generic[Item]):
    """Sends low-priority items in batches: the first item at once, then all that an interval brings together.

    Args:
        send: takes a list of items; must not raise.
        interval_s: least time between two batches, in seconds.
        max_waiting: while items can't be sent, the oldest beyond this number are dropped.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[None]],
        *,
        interval_s: float,
        max_waiting: int = 10_000,
    ) -> None:
        self._send = send
        self._interval_s = interval_s
        self._waiting: deque[Item] = deque(maxlen=max_waiting)
        self._sending: asyncio.Task[None] | None = None

    def put(self, item: Item) -> None:
        """Have `item` sent soon; returns at once."""
        self._waiting.append(item)
        if self._sending is None or self._sending.done():
            self._sending = detached_task(self._send_all())

    async def _send_all(self) -> None:
        while self._waiting:
            items = list(self._waiting)
            self._waiting.clear()
            await self._send(items)
            await asyncio.sleep(self._interval_s)
