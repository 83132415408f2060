"""Gets batches that did not arrive from the publisher's replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import zmq

from app.errors import WireError
from app.events.following.recovery_client import RecoveryClient

REPLAY_FAULTS = (WireError, TimeoutError, zmq.ZMQError)
"""What a replay may fail with: its batches don't fit, it takes too long, or there is no connection."""


class ReplayedCache(Protocol):
    """What batches are applied to, in order."""

    @property
    def applied_seq(self) -> int:
        """The last applied batch; -1: none."""
        ...

    def apply(self, seq: int, payload: bytes) -> None:
        """Apply the batch after the last one; raises `WireError` where it isn't, or can't be used."""
        ...

    def has(self, seq: int, payload: bytes) -> bool:
        """Whether this very batch was applied; sure where `knows(seq)`."""
        ...

    def knows(self, seq: int) -> bool:
        """Whether a batch `seq` that `has` denies is certainly of another publisher."""
        ...


class BatchReplayer:
    """Applies missing batches to `cache`, and asks whether there are batches after the last one.

    Args:
        cache: what lacks batches.
        client: asks the publisher.
        timeout_s: how long a whole replay may take.
    """

    def __init__(self, cache: ReplayedCache, client: RecoveryClient, timeout_s: float) -> None:
        self._cache = cache
        self._client = client
        self._timeout_s = timeout_s
        self._probe: asyncio.Task[None] | None = None

    async def replay(self, last: int) -> None:
        """Apply all batches after the last applied one; `last` must be among them.

        Raises:
            REPLAY_FAULTS: no such batch, one that doesn't follow, or no answer in time.
        """
        self._end_probe()  # a question at a time, and this is the better one
        async with asyncio.timeout(self._timeout_s):
            # From the last batch that is here already: it shows which publisher these are of.
            await self._client.replay(max(0, self._cache.applied_seq), self._apply)
        if self._cache.applied_seq < last:
            raise WireError(f"it has nothing after batch {self._cache.applied_seq}")

    def probe(self, on_published: Callable[[int], object]) -> None:
        """Call `on_published` with each batch after the last one that the publisher still has.

        Happens in a task of its own. Does nothing while an earlier probe waits for its answer.
        """
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask_for_later(on_published))

    async def close(self) -> None:
        """Stop asking, and close the socket. A later question opens it again."""
        probe = self._probe
        self.disconnect()
        if probe is not None:
            await asyncio.wait([probe])

    def disconnect(self) -> None:
        """As `close`, without waiting for the probe's end: the next answer is one to a fresh connection."""
        self._end_probe()
        self._client.close()

    async def _ask_for_later(self, on_published: Callable[[int], object]) -> None:
        """No answer says nothing."""

        def report(seq: int, payload: bytes) -> None:
            on_published(seq)

        with suppress(*REPLAY_FAULTS):
            async with asyncio.timeout(self._timeout_s):
                await self._client.replay(self._cache.applied_seq + 1, report)

    def _apply(self, seq: int, payload: bytes) -> None:
        if seq != self._cache.applied_seq:
            self._cache.apply(seq, payload)
        elif self._cache.knows(seq) and not self._cache.has(seq, payload):
            raise WireError(f"publisher restarted: it has another batch {seq}")

    def _end_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
