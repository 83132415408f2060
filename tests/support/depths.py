"""How much of a prompt an index finds on each rank."""

from __future__ import annotations

from collections.abc import Sequence

from app.routing.index.prefix_index import PrefixIndex
from app.routing.rank_sets import ranks_in


def depth_by_rank(index: PrefixIndex, block_hashes: Sequence[int]) -> dict[int, int]:
    """The length in blocks of each rank's leading run; ranks that hold nothing are left out."""
    tiers = index.match(block_hashes)
    return {rank: depth for depth, ranks in tiers for rank in ranks_in(ranks).tolist()}
