"""A fixed number of cache blocks: how many holders each has, and which are free.

Knows nothing of contents. Every operation is O(1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from app.engine.cache.free_blocks import new_free_blocks
from app.settings.engine import Eviction


class BlockPool:
    """Reference counts of blocks 0..num_blocks-1, and the free ones, each with no holder, in an order.

    Args:
        num_blocks: blocks.
        eviction: the order in which free ones are taken.
    """

    def __init__(self, num_blocks: int, eviction: Eviction = "lru") -> None:
        self._ref_counts = [0] * num_blocks
        self._free = new_free_blocks(num_blocks, eviction)

    @property
    def num_blocks(self) -> int:
        """All blocks, free or held."""
        return len(self._ref_counts)

    @property
    def num_free(self) -> int:
        """Blocks without a holder."""
        return len(self._free)

    def is_free(self, block: int) -> bool:
        """Whether `block` has no holder."""
        return self._ref_counts[block] == 0

    def take(self) -> int:
        """The free block that is to be used next, now with one holder. One must be free."""
        block = self._free.take()
        self._ref_counts[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Add a holder, who uses what the block holds; a free block stops being free."""
        self._free.use_again(block)
        self._ref_counts[block] += 1

    def release(self, block: int, *, take_first: bool = False) -> None:
        """Drop a holder. A block without any is free, and the next to be taken where `take_first`."""
        assert self._ref_counts[block] > 0, f"block {block} has no holder"
        self._ref_counts[block] -= 1
        if self._ref_counts[block] == 0:
            if take_first:
                self._free.add_first(block)
            else:
                self._free.add(block)

    def forget_contents(self) -> None:
        """No block holds anything any more that could be used again."""
        self._free.forget_contents()

    def check_integrity(self, held: Iterable[int]) -> None:
        """Raise AssertionError unless `held`, one entry per holder, is exactly what is counted."""
        expected = Counter(held)
        for block, count in enumerate(self._ref_counts):
            assert count == expected[block], f"block {block}: {count} counted, {expected[block]} holders"
            assert (block in self._free) == (count == 0), f"block {block}: free list disagrees with {count}"
        assert len(self._free) + len(expected) == self.num_blocks, "free + held != total"
        self._free.check_integrity()
