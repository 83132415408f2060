"""The content of a snapshot, for tests."""

from __future__ import annotations

from app.events.batch_codec import decode_batch
from app.events.schema import AllBlocksCleared, BlockStored
from app.events.snapshot import CacheSnapshot


def parents_in(snapshot: CacheSnapshot) -> dict[int, int | None]:
    """Each block's parent, in the order in which the snapshot has the blocks."""
    first, *stored = [event for payload in snapshot.payloads for event in decode_batch(payload).events]
    assert first == AllBlocksCleared()
    parents: dict[int, int | None] = {}
    for event in stored:
        assert isinstance(event, BlockStored)
        parent = event.parent_block_hash
        for block_hash in event.block_hashes:
            parents[block_hash] = parent
            parent = block_hash
    return parents
