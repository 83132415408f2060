"""What the ranks of the index's benchmark hold, and the prompts to match."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

CHAIN_BLOCKS = 32
QUERY_BLOCKS = 48


@dataclass(frozen=True)
class Event:
    """Blocks that one rank stores or removes: a piece of a chain and the hash before it."""

    rank: int
    block_hashes: list[int]
    parent: int | None


@dataclass(frozen=True)
class Workload:
    """What the ranks hold.

    Attributes:
        ranks: so many ranks.
        blocks: blocks that each of them holds, rounded down to whole chains.
        event_blocks: blocks of one event at most: 32 as after a chunk of a prompt, 1 as in decoding.
        seed: of the hashes.
    """

    ranks: int
    blocks: int
    event_blocks: int
    seed: int

    def stored(self) -> Iterator[Event]:
        """The ranks take turns, chain by chain."""
        for own in zip(*(self._chains(rank) for rank in range(self.ranks)), strict=True):
            for rank, chain in enumerate(own):
                for start in range(0, CHAIN_BLOCKS, self.event_blocks):
                    parent = chain[start - 1 : start].tolist()
                    hashes = chain[start : start + self.event_blocks].tolist()
                    yield Event(rank, hashes, parent[0] if parent else None)

    def removed(self) -> Iterator[Event]:
        """The same blocks in the same order of chains, each from its end."""
        for own in zip(*(self._chains(rank) for rank in range(self.ranks)), strict=True):
            for rank, chain in enumerate(own):
                for stop in range(CHAIN_BLOCKS, 0, -self.event_blocks):
                    hashes = chain[max(0, stop - self.event_blocks) : stop].tolist()
                    yield Event(rank, hashes[::-1], None)

    def _chains(self, rank: int) -> Iterator[array[int]]:
        shared, own = random.Random(f"{self.seed} shared"), random.Random(f"{self.seed} {rank}")
        for number in range(self.blocks // CHAIN_BLOCKS):
            yield array("q", (own if number % 2 else shared).randbytes(8 * CHAIN_BLOCKS))

    def queries(self, count: int) -> Iterator[list[int]]:
        """Prompts of 48 blocks: one of the stored chains, and 16 blocks that no rank holds."""
        rng = random.Random(f"{self.seed} queries")
        chains = [chain.tolist() for chain in islice(self._chains(rng.randrange(self.ranks)), 512)]
        for _ in range(count):
            new = array("q", rng.randbytes(8 * (QUERY_BLOCKS - CHAIN_BLOCKS)))
            yield rng.choice(chains) + new.tolist()
