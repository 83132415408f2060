"""Which prompts were here before: a prompt that begins with all of an earlier one is its return.

A prompt is kept under one of its blocks, the deepest of those at certain depths: these lie so close that it
stands for at least four fifths of the prompt, and so far apart that a few dozen look-ups cover any length. A
longer prompt with the same beginning is found by going through the same depths, deepest first. That it has
the last block of the earlier one shows that it is its return, and no sibling.

    depths        1 2 3 4 5 6 7 8 10 12 15 18 22 27 33 41 …
    first turn    |-----------------| 20 blocks, kept under block 18
    second turn   |---------------------| 24 blocks: nothing under block 22, the first turn under block 18
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

CHECKPOINT_SPACING: Final = 1.25
MAX_PROMPTS: Final = 65_536
"""Remembered at most; the oldest is forgotten first."""


class PastPrompt(NamedTuple):
    """One prompt that hasn't returned yet.

    Attributes:
        block_hash: what it is kept under.
        seen_at: monotonic seconds.
        rank: where it was sent.
        num_blocks: its full blocks.
        last_hash: the last of them.
        is_return: whether it was itself the return of an earlier one.
    """

    block_hash: int
    seen_at: float
    rank: int
    num_blocks: int
    last_hash: int
    is_return: bool


class PromptHistory:
    """The last prompts of this router, each until its return.

    Args:
        capacity: prompts at most.
    """

    def __init__(self, capacity: int = MAX_PROMPTS) -> None:
        self._capacity = capacity
        self._past: OrderedDict[int, PastPrompt] = OrderedDict()

    def __len__(self) -> int:
        """Prompts that are remembered."""
        return len(self._past)

    def find(self, block_hashes: Sequence[int]) -> PastPrompt | None:
        """The longest prompt that the one of these full blocks goes on from."""
        past, num_blocks = self._past, len(block_hashes)
        for index in _checkpoints(num_blocks):
            if block_hashes[index] in past:
                found = past[block_hashes[index]]
                last = found.num_blocks - 1
                if last < num_blocks and block_hashes[last] == found.last_hash:
                    return found
        return None

    def record(self, block_hashes: Sequence[int], rank: int, now: float, returned: PastPrompt | None) -> None:
        """Remember a prompt of at least one full block, in place of the one whose return it is."""
        num_blocks = len(block_hashes)
        if returned is not None:
            self._past.pop(returned.block_hash, None)
        key = block_hashes[_checkpoints(num_blocks)[0]]
        self._past[key] = PastPrompt(
            key, now, rank, num_blocks, block_hashes[num_blocks - 1], returned is not None
        )
        self._past.move_to_end(key)
        if len(self._past) > self._capacity:
            self._past.popitem(last=False)


@lru_cache(maxsize=4096)
def _checkpoints(num_blocks: int) -> tuple[int, ...]:
    """Indices of the blocks to look at, deepest first; none for no block."""
    indices, depth = [], 1
    while depth <= num_blocks:
        indices.append(depth - 1)
        depth = max(depth + 1, int(depth * CHECKPOINT_SPACING))
    return tuple(reversed(indices))
