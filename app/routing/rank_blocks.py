"""One rank's blocks as a forest of chained hashes, and whether every held block's ancestors are held too."""

from __future__ import annotations

from collections.abc import Iterable


class RankBlocks:
    """One rank's blocks as a forest, with the counts that tell whether ancestors are missing."""

    def __init__(self) -> None:
        self.parents: dict[int, int | None] = {}
        """Held block → the parent it was stored under (None at the start of a prompt)."""
        self.num_absent_parents = 0
        """Distinct parents of held blocks that aren't held themselves."""
        self._num_children: dict[int, int] = {}
        """Parent, held or not → how many held blocks name it; never zero."""
        self._extra_copies: dict[int, int] = {}
        """Copies beyond the first, for the few blocks that have them; never zero."""

    def store_chain(self, block_hashes: Iterable[int], parent: int | None) -> list[int]:
        """Add a copy of each block; returns those that weren't held."""
        parents, num_children, added = self.parents, self._num_children, []
        for block_hash in block_hashes:
            if block_hash in parents:
                self._extra_copies[block_hash] = self._extra_copies.get(block_hash, 0) + 1
            else:
                if block_hash in num_children:
                    self.num_absent_parents -= 1
                parents[block_hash] = parent
                if parent is not None:
                    siblings = num_children.get(parent, 0)
                    num_children[parent] = siblings + 1
                    if not siblings and parent not in parents:
                        self.num_absent_parents += 1
                added.append(block_hash)
            parent = block_hash
        return added

    def remove(self, block_hashes: Iterable[int]) -> list[int]:
        """Take away a copy of each held block; returns those of which none is left."""
        parents, num_children, removed = self.parents, self._num_children, []
        for block_hash in block_hashes:
            if block_hash not in parents or self._remove_extra_copy(block_hash):
                continue
            parent = parents.pop(block_hash)
            if block_hash in num_children:
                self.num_absent_parents += 1
            if parent is not None:
                siblings = num_children[parent] - 1
                if siblings:
                    num_children[parent] = siblings
                else:
                    del num_children[parent]
                    if parent not in parents:
                        self.num_absent_parents -= 1
            removed.append(block_hash)
        return removed

    def _remove_extra_copy(self, block_hash: int) -> bool:
        """Whether there was one."""
        extra = self._extra_copies.pop(block_hash, 0)
        if extra > 1:
            self._extra_copies[block_hash] = extra - 1
        return extra > 0

    def check_integrity(self) -> None:
        """Raise AssertionError when a count is off."""
        expected: dict[int, int] = {}
        for parent in self.parents.values():
            if parent is not None:
                expected[parent] = expected.get(parent, 0) + 1
        assert expected == self._num_children, "children miscounted"
        absent = sum(parent not in self.parents for parent in expected)
        assert absent == self.num_absent_parents, "absent parents miscounted"
        assert self._extra_copies.keys() <= self.parents.keys(), "copies of blocks that aren't held"
        assert all(count > 0 for count in self._extra_copies.values()), "a copy count below one"
