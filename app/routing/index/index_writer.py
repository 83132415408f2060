"""Writes one rank's cache events into the index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.events.schema import MEDIUM, AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent
from app.routing.index.prefix_index import PrefixIndex

ROUTED_MEDIA = (None, MEDIUM)
"""Blocks elsewhere must be loaded back first, so they aren't credited."""


class Journal:
    """What a writer applied while the journal was kept.

    Attributes:
        batches: the events of each batch, in order.
        is_void: the rank was cleared or the writer detached meanwhile, so the batches aren't all there was.
    """

    def __init__(self) -> None:
        self.batches: list[Sequence[CacheEvent]] = []
        self.is_void = False


class IndexWriter:
    """Where a subscriber puts the blocks of `rank`.

    Once detached it changes nothing any more, whatever its subscriber was still working on: the number may
    be another replica's by then.
    """

    def __init__(self, index: PrefixIndex, rank: int) -> None:
        self._index = index
        self._rank = rank
        self._is_detached = False
        self._journals: list[Journal] = []

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """Everything that is applied from here on, until the context's end."""
        journal = Journal()
        self._journals.append(journal)
        try:
            yield journal
        finally:
            self._journals.remove(journal)

    def detach(self) -> None:
        """Stop writing, for good."""
        self._is_detached = True
        self._void_journals()

    def apply(self, events: Sequence[CacheEvent]) -> None:
        """Change the rank's blocks by one batch."""
        if self._is_detached:
            return
        for journal in self._journals:
            journal.batches.append(events)
        for event in events:
            match event:
                case BlockStored(medium=medium) if medium in ROUTED_MEDIA:
                    self._index.store(self._rank, event.block_hashes, event.parent_block_hash)
                case BlockRemoved(medium=medium) if medium in ROUTED_MEDIA:
                    self._index.remove(self._rank, event.block_hashes)
                case AllBlocksCleared():
                    self._index.clear(self._rank)

    def clear(self) -> None:
        """Hold no blocks."""
        if not self._is_detached:
            self._index.clear(self._rank)
            self._void_journals()

    def _void_journals(self) -> None:
        for journal in self._journals:
            journal.is_void = True
