"""A naive cache, and the events that change it."""

from __future__ import annotations

from collections.abc import Sequence

from app.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent
from app.events.snapshot import CachedBlock


def stored(*hashes: int) -> BlockStored:
    return BlockStored(list(hashes), None, [0] * len(hashes), 1, medium="GPU")


def removed(*hashes: int) -> BlockRemoved:
    return BlockRemoved(list(hashes), "GPU")


class Blocks:
    """Both the truth of a rank and the sink of a subscriber."""

    def __init__(self) -> None:
        self.hashes: set[int] = set()

    def apply(self, events: Sequence[CacheEvent]) -> None:
        for event in events:
            match event:
                case BlockStored():
                    self.hashes |= set(event.block_hashes)
                case BlockRemoved():
                    self.hashes -= set(event.block_hashes)
                case AllBlocksCleared():
                    self.hashes.clear()

    def clear(self) -> None:
        self.hashes.clear()

    def as_cached(self) -> list[CachedBlock]:
        return [CachedBlock(block_hash, None) for block_hash in self.hashes]


def some_chains(*lengths: int) -> list[CachedBlock]:
    """Chains of blocks, each beginning a prompt, hashes counted up from 1."""
    blocks: list[CachedBlock] = []
    for length in lengths:
        parent = None
        for _ in range(length):
            blocks.append(CachedBlock(len(blocks) + 1, parent))
            parent = blocks[-1].hash
    return blocks
