"""Which rank holds which block: a dict from block hash to a Python int used as a bit set of ranks.

    hash of block 0 ──▶ 0b111      ranks 0, 1, 2
    hash of block 1 ──▶ 0b101      ranks 0, 2
    hash of block 2 ──▶ 0b100      rank 2           a prompt of these three blocks matches
                                                    tiers (3, {2}), (2, {0}), (1, {1})

Hashes are chained (`app.hashing`): a hash names its block and every block before it, so a rank that holds a
block normally holds all of that block's ancestors. Then "rank r holds block d" falls from true to false once
along a prompt, and its last true depth is found by binary search. Eviction out of order, or events that came
without their parents, break that; each rank's `BlockForest` knows exactly when (it counts absent parents of
held blocks), and such a rank is walked block by block until it is whole again.

That a hash names its ancestors is the one thing taken on trust: a rank that publishes a block under two
different parents can make its own matches too long, no other rank's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

from app.routing.index.block_forest import BlockForest
from app.routing.rank_sets import ranks_in

OnRemoved = Callable[[int, Collection[int], Literal["evicted", "lost"]], None]
"""Takes a rank and blocks that it holds no more: it removed them, or all of its blocks were cleared."""


class PrefixIndex:
    """The blocks of every rank, matched against prompts.

    Memory is bounded by what the ranks hold: a hash that no rank holds is deleted. Ranks are integers >= 0.

    Attributes:
        on_removed: called whenever a rank holds blocks no more, after that; must not change the collection.
    """

    def __init__(self) -> None:
        self.on_removed: OnRemoved = lambda rank, block_hashes, cause: None
        self._ranks_of: dict[int, int] = {}
        self._blocks_of: dict[int, BlockForest] = {}
        self._broken_ranks = 0
        """Bit set of the ranks that hold some block without all of its ancestors."""

    @property
    def num_blocks(self) -> int:
        """Distinct block hashes that at least one rank holds."""
        return len(self._ranks_of)

    def num_blocks_of(self, rank: int) -> int:
        """Distinct block hashes that `rank` holds."""
        blocks = self._blocks_of.get(rank)
        return len(blocks.parents) if blocks else 0

    def num_removed_of(self, rank: int) -> int:
        """Blocks that `rank` has dropped one by one, since it was last cleared."""
        blocks = self._blocks_of.get(rank)
        return blocks.num_removed if blocks else 0

    def num_children(self, rank: int, block_hash: int) -> int:
        """Different blocks that follow this one in `rank`'s cache; 0 where it doesn't hold it."""
        blocks = self._blocks_of.get(rank)
        return blocks.num_children(block_hash) if blocks else 0

    def blocks_of(self, rank: int) -> set[int]:
        """The hashes that `rank` holds, as a new set."""
        blocks = self._blocks_of.get(rank)
        return set(blocks.parents) if blocks else set()

    def holders(self, block_hash: int) -> int:
        """Bit set of the ranks that hold this block, with or without the blocks before it."""
        return self._ranks_of.get(block_hash, 0)

    def goes_on(self, block_hash: int) -> bool:
        """Whether a rank that holds this block also holds one that comes after it."""
        ranks = self._ranks_of.get(block_hash, 0)
        while ranks:
            rank = ranks.bit_length() - 1
            if self._blocks_of[rank].goes_on(block_hash):
                return True
            ranks ^= 1 << rank
        return False

    def store(self, rank: int, block_hashes: Sequence[int], parent: int | None = None) -> None:
        """Record that `rank` now holds a chain of blocks, or one more copy of some of them.

        Args:
            rank: the holder.
            block_hashes: a chain: each block is the parent of the next.
            parent: the hash before the first; None when the first block starts a prompt.
        """
        blocks = self._blocks_of.get(rank)
        if blocks is None:
            blocks = self._blocks_of[rank] = BlockForest()
        bit = 1 << rank
        if len(block_hashes) == 1:  # what every step of decoding brings
            (block_hash,) = block_hashes
            if blocks.store_block(block_hash, parent):
                self._ranks_of[block_hash] = self._ranks_of.get(block_hash, 0) | bit
        else:
            self._add_holder(bit, blocks.store_chain(block_hashes, parent))
        if blocks.absent_parents or self._broken_ranks:
            self._update_broken(bit, blocks)

    def remove(self, rank: int, block_hashes: Sequence[int]) -> None:
        """Record that `rank` dropped one copy of each block; blocks it doesn't hold are ignored."""
        blocks = self._blocks_of.get(rank)
        if blocks is not None:
            bit = 1 << rank
            removed = blocks.remove(block_hashes)
            self._drop_holder(bit, removed)
            self.on_removed(rank, removed, "evicted")
            if blocks.absent_parents or self._broken_ranks:
                self._update_broken(bit, blocks)

    def clear(self, rank: int) -> None:
        """Forget every block of `rank`, in time proportional to their number."""
        blocks = self._blocks_of.pop(rank, None)
        if blocks is not None:
            self._drop_holder(1 << rank, blocks.parents)
            self._broken_ranks &= ~(1 << rank)
            self.on_removed(rank, list(blocks.parents), "lost")

    def match(self, block_hashes: Sequence[int]) -> list[tuple[int, int]]:
        """How much of a prompt each rank holds.

        Args:
            block_hashes: the prompt's chain of block hashes from its start.

        Returns:
            Tiers `(depth, ranks)`, deepest first, depth in blocks: `ranks` is the bit set of those whose
            leading run of held blocks is exactly `depth` blocks long. Ranks that hold nothing are left out.
        """
        if not block_hashes:
            return []
        first = self._ranks_of.get(block_hashes[0], 0)
        tiers = self._search(block_hashes, first & ~self._broken_ranks)
        broken = first & self._broken_ranks
        if broken:
            return _merge(tiers, self._walk(block_hashes, broken))
        return tiers

    def check_integrity(self) -> None:
        """Recompute everything that is kept redundantly.

        Raises:
            AssertionError: a count or bit set is off.
        """
        expected: dict[int, int] = {}
        for rank, blocks in self._blocks_of.items():
            blocks.check_integrity()
            assert bool(self._broken_ranks >> rank & 1) == bool(blocks.absent_parents), f"rank {rank} broken"
            for block_hash in blocks.parents:
                expected[block_hash] = expected.get(block_hash, 0) | 1 << rank
        assert expected == self._ranks_of, "bit sets disagree with the ranks' own blocks"
        assert set(ranks_in(self._broken_ranks).tolist()) <= self._blocks_of.keys(), (
            "a rank without blocks is broken"
        )

    def _add_holder(self, bit: int, block_hashes: Collection[int]) -> None:
        # Neighbours mostly have the same ranks: one int for all of them, as it takes memory.
        ranks_of, before, after = self._ranks_of, 0, bit
        for block_hash in block_hashes:
            ranks = ranks_of.get(block_hash, 0)
            if ranks is not before:
                before, after = ranks, ranks | bit
            ranks_of[block_hash] = after

    def _drop_holder(self, bit: int, block_hashes: Collection[int]) -> None:
        ranks_of, before, others = self._ranks_of, bit, 0
        for block_hash in block_hashes:
            ranks = ranks_of[block_hash]
            if ranks is not before:
                before, others = ranks, ranks & ~bit
            if others:
                ranks_of[block_hash] = others
            else:
                del ranks_of[block_hash]

    def _update_broken(self, bit: int, blocks: BlockForest) -> None:
        if bool(blocks.absent_parents) != bool(self._broken_ranks & bit):
            self._broken_ranks ^= bit

    def _search(self, block_hashes: Sequence[int], ranks: int) -> list[tuple[int, int]]:
        """Tiers of whole `ranks`, all of which hold the first block: their set only shrinks with depth.

        Each round finds the deepest block that some rank beyond the tiers found so far holds.
        """
        tiers = []
        found, high = 0, len(block_hashes)
        while found != ranks:
            low, holders = 1, ranks
            while low < high:
                middle = (low + high + 1) >> 1
                middle_holders = self._ranks_of.get(block_hashes[middle - 1], 0) & ranks
                if middle_holders != found:
                    low, holders = middle, middle_holders
                else:
                    high = middle - 1
            tiers.append((low, holders & ~found))
            found, high = holders, low - 1
        return tiers

    def _walk(self, block_hashes: Sequence[int], ranks: int) -> list[tuple[int, int]]:
        """Tiers of any `ranks`, all of which hold the first block; shallowest first."""
        tiers = []
        for depth, block_hash in enumerate(block_hashes):
            left = ranks & ~self._ranks_of.get(block_hash, 0)
            if left:
                tiers.append((depth, left))
                ranks &= ~left
                if not ranks:
                    return tiers
        return [*tiers, (len(block_hashes), ranks)]


def _merge(tiers: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    ranks_at = dict(tiers)
    for depth, ranks in others:
        ranks_at[depth] = ranks_at.get(depth, 0) | ranks
    return sorted(ranks_at.items(), reverse=True)
