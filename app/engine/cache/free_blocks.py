"""In which order free blocks are taken: what a cache keeps, and what it evicts.

`LruBlocks`: the least recently used first.

    [taken next ... taken last]

`SegmentedBlocks`: those that were used again are kept longer than those that were used once.

    [used once: taken next ... last] [used again: taken next ... last]

A block that is held again once it was given out is a hit, and is in the second segment when it is free. So a
batch over documents that are read once evicts itself, not conversations. The second segment has at most
`PROTECTED` of all blocks, those that are held included; beyond that, its least recently used free block goes
to the end of the first, where it stays as long as one that was used just now.

A block's parent is held whenever the block is. So it is in the second segment if the block is, is free later,
and goes back later: with either order a block is taken before its parent.

Source: R. Karedla, J. S. Love, B. G. Wherry, "Caching strategies to improve disk system performance", 1994.
The share is chosen by measurement: docs/decisions/0070-eviction-by-segments.md.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Protocol

from app.settings.engine import Eviction

PROTECTED: Final = 0.25
"""Of all blocks, those that were used again and are kept for that, at most."""


class FreeBlocks(Protocol):
    """The free blocks in an order. Every operation is O(1), on average."""

    def __len__(self) -> int: ...

    def __contains__(self, block: int) -> bool: ...

    def take(self) -> int:
        """The next one, which is in the order no more."""

    def use_again(self, block: int) -> None:
        """`block`, free or not, is held for what it holds, and isn't free any more."""

    def add(self, block: int) -> None:
        """`block` is free now, and will be taken as late as its uses allow."""

    def add_first(self, block: int) -> None:
        """`block`, which holds nothing, is free now, and will be taken next."""

    def forget_contents(self) -> None:
        """No block holds anything any more that could be used again."""

    def check_integrity(self) -> None:
        """Raise AssertionError when something that is kept twice differs."""


class LruBlocks:
    """See the module. Implements `FreeBlocks`; blocks 0..num_blocks-1 are free at first."""

    def __init__(self, num_blocks: int) -> None:
        # An OrderedDict is a linked list with a lookup: O(1) at both ends and in the middle.
        self._blocks: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def take(self) -> int:
        """The least recently used one."""
        return self._blocks.popitem(last=False)[0]

    def use_again(self, block: int) -> None:
        """It isn't free any more."""
        self._blocks.pop(block, None)

    def add(self, block: int) -> None:
        """It is taken last."""
        self._blocks[block] = None

    def add_first(self, block: int) -> None:
        """It is taken first."""
        self._blocks[block] = None
        self._blocks.move_to_end(block, last=False)

    def forget_contents(self) -> None:
        """The order stays: whatever is used from now on comes after it."""

    def check_integrity(self) -> None:
        """Nothing is kept twice."""


class SegmentedBlocks:
    """See the module. Implements `FreeBlocks`; blocks 0..num_blocks-1 are free at first."""

    def __init__(self, num_blocks: int) -> None:
        self._once: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._again: OrderedDict[int, None] = OrderedDict()
        self._protected: set[int] = set()
        """Those that were used again, free or not."""
        self._max_protected = int(PROTECTED * num_blocks)

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def __contains__(self, block: int) -> bool:
        return block in self._once or block in self._again

    def take(self) -> int:
        """The least recently used one of the first segment that has any."""
        if not self._once:
            self._move_back()
        return self._once.popitem(last=False)[0]

    def use_again(self, block: int) -> None:
        """It isn't free any more, and belongs to the second segment."""
        self._once.pop(block, None)
        self._again.pop(block, None)
        self._protected.add(block)

    def add(self, block: int) -> None:
        """It is taken last of its segment."""
        if block not in self._protected:
            self._once[block] = None
            return
        self._again[block] = None
        while len(self._protected) > self._max_protected and self._again:
            self._move_back()

    def add_first(self, block: int) -> None:
        """It is taken first, whatever it held."""
        self._protected.discard(block)
        self._once[block] = None
        self._once.move_to_end(block, last=False)

    def forget_contents(self) -> None:
        """All are as if they had been used once."""
        self._once.update(self._again)
        self._again.clear()
        self._protected.clear()

    def check_integrity(self) -> None:
        """A free block is in the segment that its uses say."""
        assert self._protected.issuperset(self._again), "a block used once is in the second segment"
        assert self._protected.isdisjoint(self._once), "a block used again is in the first segment"

    def _move_back(self) -> None:
        block, _ = self._again.popitem(last=False)
        self._protected.remove(block)
        self._once[block] = None


def new_free_blocks(num_blocks: int, eviction: Eviction) -> FreeBlocks:
    """Blocks 0..num_blocks-1, all free."""
    return SegmentedBlocks(num_blocks) if eviction == "segmented" else LruBlocks(num_blocks)
