"""What a sink holds, and which batches it is made of."""

from __future__ import annotations

import pytest

from app.errors import WireError
from app.events.batch_codec import encode_batch
from app.events.following.synced_cache import SyncedCache
from app.events.schema import CacheEvent, EventBatch
from app.events.snapshot import CachedBlock, CacheSnapshot, snapshot_payloads
from tests.support.events.blocks import Blocks, removed, stored

RANK = 3


def batch(*events: CacheEvent, dp_rank: int | None = RANK, ts: float = 1.0) -> bytes:
    return encode_batch(EventBatch(ts, list(events), dp_rank))


def snapshot(seq: int, *hashes: int, dp_rank: int = RANK) -> CacheSnapshot:
    blocks = [CachedBlock(block_hash, None) for block_hash in hashes]
    return CacheSnapshot("epoch", seq, list(snapshot_payloads(blocks, dp_rank=dp_rank, block_size=1)))


async def filled(sink: Blocks, given: CacheSnapshot) -> SyncedCache:
    cache = SyncedCache(sink, RANK, "epoch before")
    await cache.fill(given)
    cache.accept(given)
    return cache


async def test_a_snapshot_and_the_batches_after_it_make_the_cache() -> None:
    sink = Blocks()
    cache = await filled(sink, snapshot(7, 1, 2))
    assert (cache.epoch, cache.applied_seq, sink.hashes) == ("epoch", 7, {1, 2})
    cache.apply(8, batch(stored(3)))
    cache.apply(9, batch(removed(1), dp_rank=None))
    assert (cache.applied_seq, sink.hashes) == (9, {2, 3})
    cache.clear()
    assert (cache.applied_seq, sink.hashes) == (-1, set())


async def test_no_batch_counts_as_applied_before_the_snapshot_is_accepted() -> None:
    sink = Blocks()
    cache = SyncedCache(sink, RANK, "epoch before")
    await cache.fill(snapshot(7, 1, 2))
    assert (cache.epoch, cache.applied_seq) == ("epoch before", -1)


@pytest.mark.parametrize(
    ("seq", "payload"),
    [(8, batch(stored(3), dp_rank=5)), (8, b"\xc1"), (7, batch(stored(3))), (9, batch(stored(3)))],
    ids=["another rank", "unreadable", "not later", "one is missing"],
)
async def test_a_batch_that_cant_be_applied_changes_nothing(seq: int, payload: bytes) -> None:
    sink = Blocks()
    cache = await filled(sink, snapshot(7, 1, 2))
    with pytest.raises(WireError):
        cache.apply(seq, payload)
    assert (cache.applied_seq, sink.hashes) == (7, {1, 2})


async def test_a_snapshot_of_another_rank_is_refused() -> None:
    with pytest.raises(WireError, match="batch of rank 5; rank 3 is followed here"):
        await filled(Blocks(), snapshot(7, 1, dp_rank=5))


async def test_a_late_copy_is_known_from_a_batch_of_another_publisher() -> None:
    cache = await filled(Blocks(), snapshot(7, 1))
    cache.apply(8, batch(stored(3)))
    assert cache.knows(8)
    assert cache.has(8, batch(stored(3)))
    assert not cache.has(8, batch(stored(4)))
    assert not cache.knows(9)
