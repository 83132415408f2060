"""How many calls run at a time, and how long each may take, by how the last ones went.

Callees that are alive but slow answer late; a caller that then gives up and calls again makes them slower
still, until no call is answered in time. So after calls that time out fewer run at a time, and each gets
longer; after answers it is more again, one by one.

Source: TCP's congestion control: additive increase, multiplicative decrease, once for all that is in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SPARE = 4.0
"""After an answer the next calls get so many times what that took, within the bounds."""


class Pace:
    """Lets calls run. All on one event loop.

    Args:
        most: calls at a time while all is well.
        timeout_s: what a call gets while all is well, in seconds.
        longest_timeout_s: what it gets at most.
    """

    def __init__(self, *, most: int, timeout_s: float, longest_timeout_s: float) -> None:
        self._most = self._limit = most
        self._shortest_s = self._timeout_s = timeout_s
        self._longest_s = longest_timeout_s
        self._num_running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._slowed_at = 0.0

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Around one call. Raises `TimeoutError` when that takes too long, or gets no turn for as long."""
        await self._enter()
        began_at = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
            self._answered(time.monotonic() - began_at)
        except TimeoutError:
            self._timed_out(began_at)
            raise
        finally:
            self._num_running -= 1
            self._admit()

    async def _enter(self) -> None:
        if self._num_running < self._limit and not self._waiting:
            self._num_running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._longest_s):
                await turn
        except BaseException:
            if not turn.cancelled():  # it has come just now
                self._num_running -= 1
            self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting and self._num_running < self._limit:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._num_running += 1

    def _answered(self, seconds: float) -> None:
        self._limit = min(self._most, self._limit + 1)
        self._timeout_s = min(self._longest_s, max(self._shortest_s, SPARE * seconds))

    def _timed_out(self, began_at: float) -> None:
        if began_at >= self._slowed_at:  # else it was in flight already when another one timed out
            self._slowed_at = time.monotonic()
            self._limit = max(1, self._limit // 2)
            self._timeout_s = min(self._longest_s, 2 * self._timeout_s)
