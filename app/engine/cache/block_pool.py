"""A fixed number of cache blocks: how many holders each has, and in which order free ones are taken.

Knows nothing of contents. Every operation is O(1).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Reference counts of blocks 0..num_blocks-1 and the free ones, least recently used first.

    free:  [taken next ... taken last], each with no holder
    """

    def __init__(self, num_blocks: int) -> None:
        self._ref_counts = [0] * num_blocks
        # An OrderedDict is a linked list with a lookup: O(1) at both ends and in the middle.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

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
        """The least recently used free block, now with one holder. One must be free."""
        block, _ = self._free.popitem(last=False)
        self._ref_counts[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Add a holder; a free block stops being free."""
        if self._ref_counts[block] == 0:
            del self._free[block]
        self._ref_counts[block] += 1

    def release(self, block: int, *, take_first: bool = False) -> None:
        """Drop a holder. A block without any is free and taken last, or first where `take_first`."""
        assert self._ref_counts[block] > 0, f"block {block} has no holder"
        self._ref_counts[block] -= 1
        if self._ref_counts[block] == 0:
            self._free[block] = None
            self._free.move_to_end(block, last=not take_first)

    def check_integrity(self, held: Iterable[int]) -> None:
        """Raise AssertionError unless `held`, one entry per holder, is exactly what is counted."""
        expected = Counter(held)
        for block, count in enumerate(self._ref_counts):
            assert count == expected[block], f"block {block}: {count} counted, {expected[block]} holders"
            assert (block in self._free) == (count == 0), f"block {block}: free list disagrees with {count}"
        assert len(self._free) + len(expected) == self.num_blocks, "free + held != total"
