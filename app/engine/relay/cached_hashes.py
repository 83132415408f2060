"""Which blocks the rank's cache holds, by their hashes: how much of a prompt needs no computing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app import hashing
from app.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent


class CachedHashes:
    """The hashes of the blocks that were published as stored, and not as removed."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._hashes: set[int] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    def apply(self, events: Iterable[CacheEvent]) -> None:
        """Take in what was published."""
        for event in events:
            match event:
                case BlockStored():
                    self._hashes.update(event.block_hashes)
                case BlockRemoved():
                    self._hashes.difference_update(event.block_hashes)
                case AllBlocksCleared():
                    self._hashes.clear()

    def num_cached_tokens(self, token_ids: Sequence[int], cache_salt: str | None) -> int:
        """Tokens of this prompt that are found here; the last one is always computed."""
        if not self._hashes:
            return 0
        found = 0
        for digest in hashing.chain(token_ids, self._block_size, hashing.seed(cache_salt)):
            if hashing.wire_hash(digest) not in self._hashes:
                break
            found += self._block_size
        return min(found, len(token_ids) - 1) // self._block_size * self._block_size
