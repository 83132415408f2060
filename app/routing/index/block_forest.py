"""One rank's blocks as a forest of chained hashes, and whether every held block's ancestors are held too.

How many held children a block has tells whether its removal leaves orphans. In chains that is one for nearly
every block, so only the others are written down:

    held, no child   ──▶ _leaves       held, 2 or more ──▶ _forks       not held, 1 or more ──▶ absent_parents
    held, one child  ──▶ nowhere       not held, none  ──▶ nowhere

The forest is whole while `absent_parents` is empty. A chain that comes or goes in one piece changes these at
its ends only, so its blocks are taken as one sequence, by operations that run in C.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Final

MIN_SEQUENCE: Final = 8
"""Fewer blocks are faster one by one."""
_NOT_HELD: Final = 1 << 256
"""Stands for the parent of a block that isn't held; outside every hash's range."""


class BlockForest:
    """One rank's blocks as a forest, with the counts that tell whether ancestors are missing."""

    def __init__(self) -> None:
        self.parents: dict[int, int | None] = {}
        """Held block → the parent it was stored under (None at the start of a prompt)."""
        self.absent_parents: dict[int, int] = {}
        """Parent that isn't held → how many held children it has; never zero."""
        self._leaves: dict[int | None, int] = {}
        """Held block without held children → itself, as the int object that `parents` holds already."""
        self._forks: dict[int, int] = {}
        """Held block with two or more held children → how many."""
        self._extra_copies: dict[int, int] = {}
        """Copies beyond the first, for the few blocks that have them; never zero."""
        self.num_removed = 0
        """Blocks that `remove` has taken away."""

    def num_children(self, block_hash: int) -> int:
        """Held blocks that follow a block; 0 where it isn't held."""
        if block_hash in self._leaves or block_hash not in self.parents:
            return 0
        return self._forks.get(block_hash, 1)

    def store_chain(self, block_hashes: Sequence[int], parent: int | None) -> Sequence[int]:
        """Add a copy of each block; returns those that weren't held."""
        if len(block_hashes) >= MIN_SEQUENCE and self._store_sequence(block_hashes, parent):
            return block_hashes
        added = []
        for block_hash in block_hashes:
            if self.store_block(block_hash, parent):
                added.append(block_hash)
            parent = block_hash
        return added

    def store_block(self, block_hash: int, parent: int | None) -> bool:
        """Add a copy of one block; whether it wasn't held."""
        if block_hash in self.parents:
            self._extra_copies[block_hash] = self._extra_copies.get(block_hash, 0) + 1
            return False
        # In decoding the parent is a leaf, which this block takes the place of.
        leaf = self._leaves.pop(parent, None)
        if leaf is None and parent is not None:
            leaf = self._add_child(parent)
        self.parents[block_hash] = leaf
        children = self.absent_parents.pop(block_hash, 0) if self.absent_parents else 0
        if not children:
            self._leaves[block_hash] = block_hash
        elif children > 1:
            self._forks[block_hash] = children
        return True

    def remove(self, block_hashes: Sequence[int]) -> Sequence[int]:
        """Take away a copy of each held block; returns those of which none is left."""
        if self._extra_copies:
            block_hashes = [each for each in block_hashes if not self._remove_extra_copy(each)]
        if len(block_hashes) >= MIN_SEQUENCE and self._remove_sequence(block_hashes):
            self.num_removed += len(block_hashes)
            return block_hashes
        removed = []
        for block_hash in block_hashes:
            parent = self.parents.pop(block_hash, _NOT_HELD)
            if parent is not _NOT_HELD:
                self._unlink(block_hash, parent)
                removed.append(block_hash)
        self.num_removed += len(removed)
        return removed

    def goes_on(self, block_hash: int) -> bool:
        """Whether a block is held that comes after this one, which is held."""
        return block_hash not in self._leaves

    def check_integrity(self) -> None:
        """Raise AssertionError when a count is off."""
        children = dict.fromkeys(self.parents, 0)
        for parent in self.parents.values():
            if parent is not None:
                children[parent] = children.get(parent, 0) + 1
        held = {each: count for each, count in children.items() if each in self.parents}
        assert self._leaves == {each: each for each, count in held.items() if count == 0}, "leaves"
        assert self._forks == {each: count for each, count in held.items() if count > 1}, "forks"
        absent = {each: count for each, count in children.items() if each not in self.parents}
        assert self.absent_parents == absent, "absent parents"
        assert self._extra_copies.keys() <= self.parents.keys(), "copies of blocks that aren't held"
        assert all(count > 0 for count in self._extra_copies.values()), "a copy count below one"

    def _store_sequence(self, block_hashes: Sequence[int], parent: int | None) -> bool:
        """Add a chain if all of it is new: no block held, the absent parent of another, or there twice."""
        parents, num_held = self.parents, len(self.parents)
        if not parents.keys().isdisjoint(block_hashes):
            return False
        if self.absent_parents and not self.absent_parents.keys().isdisjoint(block_hashes):
            return False
        parents.update(zip(block_hashes, chain((None,), block_hashes), strict=False))
        if len(parents) - num_held < len(block_hashes):
            for block_hash in set(block_hashes):
                del parents[block_hash]
            return False
        self._leaves[block_hashes[-1]] = block_hashes[-1]
        if parent is not None:
            # As the object that `parents` holds already, where that is at hand.
            leaf = self._leaves.pop(parent, None)
            parents[block_hashes[0]] = self._add_child(parent) if leaf is None else leaf
        return True

    def _remove_sequence(self, block_hashes: Sequence[int]) -> bool:
        """Remove held blocks if they are a chain, in either direction, that doesn't fork."""
        parents = list(map(self.parents.get, block_hashes, repeat(_NOT_HELD)))
        if parents[:-1] == block_hashes[1:]:
            before_first, last = parents[-1], block_hashes[0]
        elif parents[1:] == block_hashes[:-1]:
            before_first, last = parents[0], block_hashes[-1]
        else:
            return False
        if before_first is _NOT_HELD:
            return False
        # A ring of blocks, which only a faulty rank stores, may go round more than once.
        if before_first is not None and before_first in block_hashes:
            return False
        if self._forks and not self._forks.keys().isdisjoint(block_hashes):
            return False
        for block_hash in block_hashes:
            del self.parents[block_hash]
        self._unlink(last, before_first)
        return True

    def _unlink(self, last: int, before_first: int | None) -> None:
        """Count without a chain that isn't held any more; only its last block may have children left."""
        if self._leaves.pop(last, None) is None:
            self.absent_parents[last] = self._forks.pop(last, 1)
        if before_first is None:
            return
        if before_first in self.parents:
            children = self._forks.pop(before_first, 1) - 1
            if not children:
                self._leaves[before_first] = before_first
            elif children > 1:
                self._forks[before_first] = children
        else:
            children = self.absent_parents.pop(before_first) - 1
            if children:
                self.absent_parents[before_first] = children

    def _add_child(self, parent: int) -> int:
        """Count one child more of a block that is no leaf, or isn't held; returns the block."""
        if parent in self.parents:
            self._forks[parent] = self._forks.get(parent, 1) + 1
        else:
            self.absent_parents[parent] = self.absent_parents.get(parent, 0) + 1
        return parent

    def _remove_extra_copy(self, block_hash: int) -> bool:
        """Whether there was one."""
        extra = self._extra_copies.pop(block_hash, 0)
        if extra > 1:
            self._extra_copies[block_hash] = extra - 1
        return extra > 0
