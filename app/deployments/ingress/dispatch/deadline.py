"""Until when a request must be answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.errors import DeadlineError


class Deadline:
    """A request's time, which begins now.

    Args:
        timeout_s: seconds.
        given_by: the header or setting that says so.

    Attributes:
        given: which says how much, for people to read.
    """

    def __init__(self, timeout_s: float, given_by: str) -> None:
        self._at = time.monotonic() + timeout_s
        self.given = f"{given_by} = {timeout_s:g} s"

    @asynccontextmanager
    async def ends(self) -> AsyncIterator[None]:
        """Cancels what is done here when the time is over.

        Raises:
            DeadlineError: it is.
        """
        # 0 would let through what needs no wait at all, and a token that has come may be sent.
        limit = asyncio.timeout(max(0.0, self._at - time.monotonic()))
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineError(f"the request's time is over ({self.given})") from None
