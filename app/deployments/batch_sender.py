"""What is told to other deployments beside the work: many items at a time, and never on a request's way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from app.deployments.detached_task import detached_task

Item = TypeVar("Item")


class BatchSender(Generic[Item]):
    """Sends what is put into it: the first item at once, what comes within an interval together after it.

    Args:
        send: takes a list of items to whom they concern; must not raise.
        interval_s: between two sendings at least.
        max_waiting: while they can't be sent, the oldest items beyond these are given up.
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
