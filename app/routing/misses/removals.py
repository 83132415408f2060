"""Which rank dropped a block last, when, and whether it was evicted or lost: the last so many blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from typing import Literal

Cause = Literal["evicted", "lost"]


@dataclass(slots=True, eq=False)
class Removal:
    """Blocks that left a rank's cache at one moment.

    Attributes:
        cause: for want of space, or with the rank, its reset or its successor.
        rank: which rank dropped them.
        at: when, in seconds of the caller's clock.
        block_hashes: the blocks.
    """

    cause: Cause
    rank: int
    at: float
    block_hashes: Collection[int]


class Removals:
    """The last removal of each of the last `capacity` blocks or so.

    Args:
        capacity: blocks that are remembered.
        clock: gives the time in seconds.
    """

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self._capacity = capacity
        self._clock = clock
        self._last: dict[int, Removal] = {}
        self._removals: deque[Removal] = deque()
        """In order."""

    def __len__(self) -> int:
        """Blocks that are remembered."""
        return len(self._last)

    def __contains__(self, block_hash: int) -> bool:
        return block_hash in self._last

    def last(self, block_hash: int) -> Removal | None:
        """Its last removal from any rank, as long as that is remembered."""
        return self._last.get(block_hash)

    def add(self, rank: int, block_hashes: Collection[int], cause: Cause) -> None:
        """`rank` doesn't hold these blocks any more; of more than the capacity the first ones count."""
        if not block_hashes:
            return
        if len(block_hashes) > self._capacity:
            block_hashes = list(islice(block_hashes, self._capacity))
        removal = Removal(cause, rank, self._clock(), block_hashes)
        self._last.update(dict.fromkeys(block_hashes, removal))
        self._removals.append(removal)
        while len(self._last) > self._capacity:
            self._forget(self._removals.popleft())

    def _forget(self, removal: Removal) -> None:
        last = self._last
        for block_hash in removal.block_hashes:
            if last.get(block_hash) is removal:
                del last[block_hash]
