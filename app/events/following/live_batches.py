"""Batches as they come over a connection: each once, in order, and what is missing is noticed.

    Connection ──▶ LiveBatches ──┬── the next batch ────────────────────▶ apply
                                 ├── batches up to this one are missing ─▶ recover
                                 ├── a batch of another publisher ──────▶ on_restarted
                                 └── the connection is lost ────────────▶ on_disconnected

A lost batch is noticed by the next one's number. When there is no next one it is noticed by what the owner
hears of the publisher (`record_published`), or by asking the replay for later batches after a silence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from app.errors import WireError
from app.events.bad_messages import BadMessages
from app.events.following.batch_replayer import BatchReplayer, ReplayedCache
from app.events.following.connection import Connection
from app.events.following.loss_detector import LossDetector
from app.events.schema import split_message

_BURST = 256
_SLICE_S = 0.01
"""How long a burst of batches may hold up the event loop; one big batch may take longer."""


class LiveBatches:
    """Reads one connection after another into `cache`. Everything runs on the event loop.

    Args:
        cache: what the batches are applied to.
        replayer: is asked for later batches after a silence; None: there is no replay.
        topic: the first frame of each batch.
        bad: counts messages that aren't a batch.
        apply: takes the next batch.
        recover: gets the missing batches up to this number, or calls `end`.
        on_restarted: calls `end`; the batches are another publisher's, and the text says what showed it.
        on_disconnected: calls `end`; what comes next may not follow what came before.
        delivery_timeout_s: how long a batch that was published may take to arrive; then it is lost.
        probe_interval_s: how long nothing may be received before the replay is asked for later batches.

    Attributes:
        begin_at: where any batch may be the next one, what to call with its number first; None: it is the one
            after the last that was applied.
    """

    def __init__(
        self,
        cache: ReplayedCache,
        replayer: BatchReplayer | None,
        *,
        topic: bytes,
        bad: BadMessages,
        apply: Callable[[int, bytes], Awaitable[object]],
        recover: Callable[[int], Awaitable[object]],
        on_restarted: Callable[[str], object],
        on_disconnected: Callable[[], object],
        delivery_timeout_s: float,
        probe_interval_s: float,
    ) -> None:
        self.begin_at: Callable[[int], object] | None = None
        self._cache = cache
        self._replayer = replayer
        self._topic = topic
        self._bad = bad
        self._apply = apply
        self._recover = recover
        self._on_restarted = on_restarted
        self._on_disconnected = on_disconnected
        self._losses = LossDetector(delivery_timeout_s, probe_interval_s if replayer else None)
        self._received_seq = -1  # last batch received over this connection
        self._is_ended = True
        self._wake = asyncio.Event()

    def begin(self) -> None:
        """A connection is new, and the cache is known up to its last applied batch.

        The first probe is due at once: a subscription takes effect at the publisher in its own time, so a
        batch or two may have been published before.
        """
        self._received_seq = -1
        self._losses.begin()
        self._is_ended = False

    def end(self) -> None:
        """Let `follow` return, now or when it is called."""
        self._is_ended = True
        self._wake.set()

    async def follow(self, connection: Connection) -> None:
        """Read batches until `end`."""
        while not self._is_ended:
            connection.notify(self._wake.set)
            await self._wait(self._losses.next_check())
            messages = connection.receive(_BURST)
            if connection.broke():
                self._on_disconnected()
            until = time.monotonic() + _SLICE_S
            for frames in messages:
                if self._is_ended:
                    return
                await self._on_message(frames)
                if time.monotonic() > until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + _SLICE_S
            if len(messages) == _BURST:
                self._wake.set()
                await asyncio.sleep(0)
            elif not self._is_ended:
                await self._check_for_lost()

    def record_received(self) -> None:
        """What was heard of the publisher shows that nothing is missing: no need to ask for a while."""
        self._losses.record_received()

    def record_published(self, seq: int) -> None:
        """Batch `seq` was published. It counts as lost when it doesn't arrive in time."""
        if self._losses.record_published(seq, self._cache.applied_seq):
            self._wake.set()

    async def _wait(self, until: float | None) -> None:
        """Wait to be woken, until a monotonic time at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        self._wake.clear()

    async def _on_message(self, frames: Sequence[bytes]) -> None:
        try:
            topic, seq, payload = split_message(frames)
            if topic != self._topic:
                raise WireError(f"topic {topic!r}; subscribed to {self._topic!r}")
        except WireError as error:
            self._bad.add(error)
            return
        if self.begin_at is not None:
            self.begin_at(seq)
            self.begin_at = None
        applied_seq = self._cache.applied_seq
        if seq <= applied_seq and self._cache.has(seq, payload):
            self._received_seq = max(self._received_seq, seq)
            return  # late or twice
        if seq <= self._received_seq or self._cache.knows(seq):
            self._on_restarted(f"publisher restarted: another batch {seq} came after {applied_seq}")
            return
        self._received_seq = seq
        self._losses.record_received()
        if seq <= applied_seq:
            return  # replayed, too long ago to be remembered
        if seq > applied_seq + 1:
            await self._recover(seq - 1)
        if not self._is_ended and seq > self._cache.applied_seq:
            await self._apply(seq, payload)

    async def _check_for_lost(self) -> None:
        if self.begin_at is not None:
            return
        lost = self._losses.take_lost(self._cache.applied_seq)
        if lost is not None:
            await self._recover(lost)
        elif self._replayer is not None and self._losses.take_probe():
            self._replayer.probe(self.record_published)
