"""A reader of cache events that knows nothing but them: what it believes must be what the cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app import hashing
from app.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent


@dataclass
class EventReplay:
    """Each block's parent by their names, and digests made again from nothing but the events' tokens.

    Fails where an event names a parent that the reader doesn't know, stores what is stored already, or
    removes what isn't stored or still has children.
    """

    block_size: int
    salts: Sequence[str | None] = (None,)
    parent_of: dict[int, int | None] = field(default_factory=dict)
    num_children: dict[int, int] = field(default_factory=dict)
    digest_of: dict[int, bytes] = field(default_factory=dict)

    def apply(self, events: Iterable[CacheEvent]) -> None:
        for event in events:
            match event:
                case BlockStored():
                    self._store(event)
                case BlockRemoved():
                    for name in event.block_hashes:
                        self._remove(name)
                case AllBlocksCleared():
                    self.parent_of.clear()
                    self.num_children.clear()

    def _store(self, event: BlockStored) -> None:
        assert len(event.token_ids) == len(event.block_hashes) * self.block_size
        parent = event.parent_block_hash
        if parent is None:
            roots = [hashing.seed(salt) for salt in self.salts]
        else:
            assert parent in self.parent_of, "the parent is not known"
            roots = [self.digest_of[parent]]
        chains = [hashing.chain(event.token_ids, self.block_size, root) for root in roots]
        (digests,) = (chain for chain in chains if hashing.wire_hash(chain[0]) == event.block_hashes[0])
        assert [hashing.wire_hash(digest) for digest in digests] == event.block_hashes
        for name, digest in zip(event.block_hashes, digests, strict=True):
            assert name not in self.parent_of, "stored twice"
            self.parent_of[name], self.digest_of[name], self.num_children[name] = parent, digest, 0
            if parent is not None:
                self.num_children[parent] += 1
            parent = name

    def _remove(self, name: int) -> None:
        parent = self.parent_of.pop(name)
        assert self.num_children.pop(name) == 0, "removed before its children"
        if parent is not None:
            self.num_children[parent] -= 1

    def count_hits(self, tokens: Sequence[int], salt: str | None = None) -> int:
        """How many leading full blocks of `tokens` are stored."""
        names = [
            hashing.wire_hash(digest) for digest in hashing.chain(tokens, self.block_size, hashing.seed(salt))
        ]
        hits = [name in self.parent_of for name in names]
        return hits.index(False) if False in hits else len(hits)
