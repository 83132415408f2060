"""What the benchmark of the prefix index promises of its events."""

from __future__ import annotations

import pytest

from app.routing.index.prefix_index import PrefixIndex
from benchmarks.index.workload import CHAIN_BLOCKS, Workload


@pytest.mark.parametrize("event_blocks", [1, 5, CHAIN_BLOCKS])
def test_ranks_share_half_of_their_blocks_and_remove_all_that_they_stored(event_blocks: int) -> None:
    workload = Workload(ranks=3, blocks=4 * CHAIN_BLOCKS, event_blocks=event_blocks, seed=1)
    index = PrefixIndex()
    for event in workload.stored():
        assert len(event.block_hashes) <= event_blocks
        index.store(event.rank, event.block_hashes, event.parent)
    assert [index.num_blocks_of(rank) for rank in range(3)] == [4 * CHAIN_BLOCKS] * 3
    assert index.num_blocks == (2 + 3 * 2) * CHAIN_BLOCKS
    for event in workload.removed():
        index.remove(event.rank, event.block_hashes)
        index.check_integrity()
    assert index.num_blocks == 0
