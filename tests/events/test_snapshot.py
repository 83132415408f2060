"""Making a snapshot of a cache's content."""

from __future__ import annotations

from collections.abc import Iterator

from app.events.batch_codec import decode_batch
from app.events.schema import BlockStored
from app.events.snapshot import BLOCKS_PER_PAYLOAD, CachedBlock, snapshot_payloads
from tests.support.events.blocks import some_chains


def test_sequences_that_grew_side_by_side_come_one_after_the_other_each_after_its_parents() -> None:
    # 1-2-3-4 and 11-12-13 in turn, 21-22 forks off 2, 31 off an absent 30.
    blocks = [(1, None), (11, None), (2, 1), (12, 11), (3, 2), (21, 2), (13, 12), (22, 21), (4, 3), (31, 30)]
    (payload,) = snapshot_payloads([CachedBlock(*each) for each in blocks], dp_rank=0, block_size=16)
    _, *events = decode_batch(payload).events
    chains = [event for event in events if isinstance(event, BlockStored)]
    assert len(chains) == len(events)
    assert [(each.block_hashes, each.parent_block_hash) for each in chains] == [
        ([1, 2, 3, 4], None),
        ([11, 12, 13], None),
        ([21, 22], 2),
        ([31], 30),
    ]


def test_a_snapshot_is_made_piece_by_piece() -> None:
    """So that a replay needn't wait for the whole of it."""
    num_taken = 0

    def blocks() -> Iterator[CachedBlock]:
        nonlocal num_taken
        for block in some_chains(*[100] * 1_000):
            num_taken += 1
            yield block

    payloads = snapshot_payloads(blocks(), dp_rank=0, block_size=16)
    next(payloads)
    assert num_taken <= 4 * BLOCKS_PER_PAYLOAD
    assert len(list(payloads)) >= 100_000 // (2 * BLOCKS_PER_PAYLOAD)
