"""Which of our blocks are credited, counted over the groups of a foreign cache, and the events that say so.

A model may have several groups of layers, each with blocks of its own for the same tokens. A prompt can reuse
a block only where every group of full attention holds it, so only such a block is credited. Two foreign
blocks of one group may name the same block of ours: it is held until both are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat

from app.events.schema import (
    MAX_HASHES_PER_EVENT,
    MEDIUM,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    CacheEvent,
)
from app.events.snapshot import CachedBlock

Counts = dict[int, int]
"""One group's blocks: wire hash → how many reachable foreign blocks have it."""


class Ledger:
    """The credited blocks, and what changed since the last `drain`.

    Attributes:
        content: wire hash → block, parents before children.
    """

    def __init__(self, block_size: int) -> None:
        self.content: dict[int, CachedBlock] = {}
        self._block_size = block_size
        self._groups: list[Counts] = []
        self._events: list[CacheEvent] = []
        self._removed: list[int] = []

    def add_group(self) -> Counts:
        """One more group, which holds nothing yet: so nothing is credited until it does."""
        counts: Counts = {}
        self._groups.append(counts)
        if self.content:
            self.content.clear()
            self._say_cleared()
        return counts

    def gain(self, counts: Counts, name: int, parent: int | None) -> bool:
        """Group `counts` can reach `name` once more; whether it is credited by that."""
        held = counts.get(name, 0)
        counts[name] = held + 1
        if held or not (len(self._groups) == 1 or all(name in group for group in self._groups)):
            return False
        self.content[name] = CachedBlock(name, parent)
        return True

    def gain_chain(self, counts: Counts, names: Sequence[int], parent: int | None) -> bool:
        """As `gain` for each of a chain, if all of it is new and there is no other group; whether it was."""
        if len(self._groups) > 1 or not counts.keys().isdisjoint(names):
            return False
        num_counts = len(counts)
        counts.update(zip(names, repeat(1)))
        if len(counts) - num_counts < len(names):  # one is there twice
            for name in set(names):
                del counts[name]
            return False
        self.content.update(zip(names, map(CachedBlock, names, chain((parent,), names)), strict=False))
        return True

    def lose(self, counts: Counts, name: int) -> None:
        """Group `counts` can reach `name` once less."""
        held = counts[name] - 1
        if held:
            counts[name] = held
            return
        del counts[name]
        if self.content.pop(name, None) is not None:
            self._removed.append(name)

    def clear(self) -> None:
        """Nothing is credited, and there are no groups."""
        self.content.clear()
        self._groups.clear()
        self._say_cleared()

    def say_stored(self, names: list[int], parent: int | None, token_ids: list[int]) -> None:
        """A chain of blocks is credited; `token_ids` are theirs, or empty where they aren't known."""
        self._say_removed()
        for start in range(0, len(names), MAX_HASHES_PER_EVENT):
            some = names[start : start + MAX_HASHES_PER_EVENT]
            tokens = token_ids[start * self._block_size : (start + len(some)) * self._block_size]
            self._events.append(BlockStored(some, parent, tokens, self._block_size, medium=MEDIUM))
            parent = some[-1]

    def drain(self) -> list[CacheEvent]:
        """What changed since the last call, in order."""
        self._say_removed()
        events, self._events = self._events, []
        return events

    def check_integrity(self, groups: Sequence[Counts]) -> None:
        """Raise AssertionError unless exactly what all `groups` hold is credited, parents first."""
        assert [id(each) for each in groups] == [id(each) for each in self._groups], "other groups"
        common = set.intersection(*map(set, groups)) if groups else set()
        assert self.content.keys() == common, "credited is not what all groups hold"
        seen: set[int | None] = {None}
        for block in self.content.values():
            assert block.parent_hash in seen, f"block {block.hash} is credited before its parent"
            seen.add(block.hash)

    def _say_cleared(self) -> None:
        self._removed = []
        self._events.append(AllBlocksCleared())

    def _say_removed(self) -> None:
        """One event for all that went with nothing in between."""
        removed, self._removed = self._removed, []
        for start in range(0, len(removed), MAX_HASHES_PER_EVENT):
            self._events.append(BlockRemoved(removed[start : start + MAX_HASHES_PER_EVENT], MEDIUM))
