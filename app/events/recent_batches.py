"""Tells a late copy of a batch from a batch of another publisher."""

from __future__ import annotations

_NUM_REMEMBERED = 1_024


class RecentBatches:
    """What the last applied batches looked like.

    A sequence number at or below the last one means that the publisher was started anew, or that a batch
    comes late or twice, as after a replay or behind something that reorders. A batch carries the time at
    which it was made, so only a copy has the same bytes.
    """

    def __init__(self) -> None:
        self._digests: dict[int, int] = {}

    def add(self, seq: int, payload: bytes) -> None:
        """Remember batch `seq`, the one after the last."""
        self._digests[seq] = hash(payload)
        self._digests.pop(seq - _NUM_REMEMBERED, None)

    def has(self, seq: int, payload: bytes) -> bool:
        """Whether this very batch was applied lately."""
        return self._digests.get(seq) == hash(payload)

    def clear(self) -> None:
        """Forget all, as what follows is of another publisher or after a gap."""
        self._digests.clear()
