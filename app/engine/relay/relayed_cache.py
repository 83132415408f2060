"""A relay's content, which of the worker's batches it is made of, and the lock around both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from app.engine.interface import Result
from app.engine.relay.relay import Relay
from app.errors import WireError
from app.events.following.recent_batches import RecentBatches
from app.events.schema import CacheEvent
from app.events.snapshot import CachedBlock

Publish = Callable[[Sequence[CacheEvent]], object]


class RelayedCache:
    """Applies a worker's batches in order, and publishes what they change, as one step under a lock.

    So content that is read under the lock is what the published events say, whichever thread reads it.

    Attributes:
        applied_seq: the last batch that was applied; -1: none.
        is_whole: whether all that the worker's cache holds is known: from its first batch on, or since it was
            cleared.
    """

    def __init__(self, relay: Relay, publish: Publish) -> None:
        self.applied_seq = -1
        self.is_whole = False
        self._relay = relay
        self._publish = publish
        self._recent = RecentBatches()
        self._lock = threading.Lock()
        self._may_be_published = False
        """Whether anything may be published as cached, also where publishing failed half-way."""

    def begin(self, seq: int) -> None:
        """Hold nothing; batch `seq` is the next one."""
        self.clear()
        self.applied_seq = seq - 1
        self.is_whole = seq == 0

    def clear(self) -> None:
        """Hold nothing, and say so where something was held."""
        with self._lock:
            self._clear()
        self.applied_seq, self.is_whole = -1, False
        self._recent = RecentBatches()

    def apply(self, seq: int, payload: bytes) -> None:
        """Apply the batch after the last one. After one that can't be read nothing is held.

        Raises:
            WireError: it isn't that batch. Nothing was changed then.
        """
        if seq != self.applied_seq + 1:
            raise WireError(f"batch {seq} where batch {self.applied_seq + 1} is needed")
        relay = self._relay
        num_cleared, num_unreadable = relay.num_cleared, relay.num_unreadable
        with self._lock:
            events = relay.apply(payload)
            if events:
                self._may_be_published = True
                self._publish(events)
            if relay.num_unreadable != num_unreadable:
                self._clear()
        self._recent.add(seq, payload)
        self.applied_seq = seq
        if relay.num_unreadable != num_unreadable:
            self.is_whole = False
        elif relay.num_cleared != num_cleared:
            self.is_whole = True

    def has(self, seq: int, payload: bytes) -> bool:
        """Whether this very batch was applied; sure where `knows(seq)`."""
        return self._recent.has(seq, payload)

    def knows(self, seq: int) -> bool:
        """Whether a batch `seq` that `has` denies is certainly of another publisher."""
        return self._recent.knows(seq)

    def content(self, read: Callable[[Sequence[CachedBlock]], Result]) -> Future[Result]:
        """What `read` makes of the content: after all events that led to it were published, and no later one.

        `read` is called at once, on the calling thread. What it raises is the future's result.
        """
        future: Future[Result] = Future()
        try:
            with self._lock:
                result = read(self._relay.content)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)
        return future

    def _clear(self) -> None:
        events = self._relay.clear()
        if self._may_be_published:
            self._publish(events)
            self._may_be_published = False
