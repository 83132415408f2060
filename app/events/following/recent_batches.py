"""Distinguishes a late copy of a batch from a batch of another publisher."""

from __future__ import annotations

from app.errors import WireError
from app.events.batch_codec import decode_batch

_NUM_REMEMBERED = 1_024


class RecentBatches:
    """What was applied last: a snapshot, and a digest of each of the latest batches after it.

    A sequence number at or below the last one means that the publisher was restarted, or that a batch
    comes late or twice, as after a replay or over a link that reorders. A batch carries the time at
    which it was made: so only a copy has the same bytes, and only one made before a snapshot can be in it.
    """

    def __init__(self) -> None:
        self._digests: dict[int, int] = {}
        self._snapshot_seq = -1
        self._snapshot_ts = 0.0

    def begin(self, seq: int, ts: float) -> None:
        """A snapshot was applied: it holds all batches up to `seq`, and was made at `ts`."""
        self._digests.clear()
        self._snapshot_seq, self._snapshot_ts = seq, ts

    def add(self, seq: int, payload: bytes) -> None:
        """Batch `seq` was applied."""
        self._digests[seq] = hash(payload)
        self._digests.pop(seq - _NUM_REMEMBERED, None)

    def knows(self, seq: int) -> bool:
        """Whether `has` is sure: a batch of this number that it denies is of another publisher."""
        return seq <= self._snapshot_seq or seq in self._digests

    def has(self, seq: int, payload: bytes) -> bool:
        """Whether this very batch was applied, or is in the snapshot."""
        if seq > self._snapshot_seq:
            return self._digests.get(seq) == hash(payload)
        try:
            return decode_batch(payload, token_ids=False).ts <= self._snapshot_ts
        except WireError:
            return False
