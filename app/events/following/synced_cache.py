"""One rank's blocks in a sink, and which of the rank's batches they are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from app.errors import WireError
from app.events.batch_codec import decode_batch
from app.events.following.recent_batches import RecentBatches
from app.events.schema import CacheEvent, EventBatch
from app.events.snapshot import CacheSnapshot


class CacheSink(Protocol):
    """Where one rank's blocks are kept."""

    def apply(self, events: Sequence[CacheEvent]) -> None:
        """Change the blocks by one batch."""

    def clear(self) -> None:
        """Hold no blocks."""


class SyncedCache:
    """What `sink` holds of rank `rank`. Changed by a snapshot, and then batch by batch without a gap.

    The resynchroniser fills it, and the subscriber applies the batches after that; never both at a time.
    Events reach the sink without their token ids.

    Attributes:
        epoch: of the publisher whose batches the sink holds.
        applied_seq: the last batch in the sink; -1: none.
    """

    def __init__(self, sink: CacheSink, rank: int, epoch: str) -> None:
        self.epoch = epoch
        self.applied_seq = -1
        self._sink = sink
        self._rank = rank
        self._recent = RecentBatches()

    def clear(self) -> None:
        """Hold no blocks, and no batch."""
        self._sink.clear()
        self.applied_seq = -1

    async def fill(self, snapshot: CacheSnapshot) -> None:
        """Hold the blocks of `snapshot` and no others; no batch counts as applied until `accept`.

        Other tasks run between two payloads: there may be millions of blocks.

        Raises:
            WireError: a payload can't be read, or is of another rank.
        """
        self._sink.clear()
        ts = 0.0
        for payload in snapshot.payloads:
            batch = self._decode(payload)
            self._sink.apply(batch.events)
            ts = batch.ts
            await asyncio.sleep(0)
        self._recent.begin(snapshot.seq, ts)

    def accept(self, snapshot: CacheSnapshot) -> None:
        """The sink holds the rank's cache as it was in `snapshot`, which has filled it."""
        self.epoch = snapshot.epoch
        self.applied_seq = snapshot.seq

    def apply(self, seq: int, payload: bytes) -> None:
        """Apply the batch after the last one.

        Raises:
            WireError: it isn't that batch, can't be read, or is of another rank. Nothing was changed then.
        """
        if seq != self.applied_seq + 1:
            raise WireError(f"batch {seq} where batch {self.applied_seq + 1} is needed")
        self._sink.apply(self._decode(payload).events)
        self._recent.add(seq, payload)
        self.applied_seq = seq

    def has(self, seq: int, payload: bytes) -> bool:
        """Whether this very batch was applied, or is in the snapshot; sure where `knows(seq)`."""
        return self._recent.has(seq, payload)

    def knows(self, seq: int) -> bool:
        """Whether a batch `seq` that `has` denies is certainly of another publisher."""
        return self._recent.knows(seq)

    def _decode(self, payload: bytes) -> EventBatch:
        batch = decode_batch(payload, token_ids=False)
        if batch.dp_rank not in (None, self._rank):
            raise WireError(f"batch of rank {batch.dp_rank}; rank {self._rank} is followed here")
        return batch
