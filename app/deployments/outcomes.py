"""Tells the routers what became of requests: many at a time, and never on a request's way."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from app.deployments.apart import apart
from app.routing.decision_log import Outcome


class OutcomeReporter:
    """Collects outcomes and sends them every now and then, while there are any.

    Args:
        send: takes a list of them to all routers.
        interval_s: for how long news is collected: so a router hears of a request that much later.
        max_waiting: while no router answers, the oldest news beyond these is given up.
    """

    def __init__(
        self,
        send: Callable[[list[Outcome]], Awaitable[None]],
        *,
        interval_s: float = 0.2,
        max_waiting: int = 10_000,
    ) -> None:
        self._send = send
        self._interval_s = interval_s
        self._waiting: deque[Outcome] = deque(maxlen=max_waiting)
        self._sending: asyncio.Task[None] | None = None

    def note(self, outcome: Outcome) -> None:
        """Have `outcome` sent soon; returns at once."""
        self._waiting.append(outcome)
        if self._sending is None or self._sending.done():
            self._sending = apart(self._send_all())

    async def _send_all(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._interval_s)
            outcomes = list(self._waiting)
            self._waiting.clear()
            await self._send(outcomes)


class Attempt:
    """One call of a request to a rank, from now on.

    Args:
        note: told of its outcome as it goes.
        request_id: the request's.
        rank: which rank is called.
    """

    def __init__(self, note: Callable[[Outcome], None], request_id: str, rank: int) -> None:
        self._note = note
        self._request_id = request_id
        self._rank = rank
        self._called_at = time.monotonic()
        self._ttft_s: float | None = None

    def answers(self) -> None:
        """The first token is there."""
        self._ttft_s = time.monotonic() - self._called_at
        self.end("answering")

    def end(self, result: str) -> None:
        """It ended like this; see `Outcome`."""
        self._note(Outcome(self._request_id, self._rank, result, self._ttft_s))
