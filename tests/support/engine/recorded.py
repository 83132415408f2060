"""A listener that keeps what an engine published, and applies it as a subscriber would."""

from __future__ import annotations

from collections.abc import Sequence

from app.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent, LoadStat


class Recorded:
    """See `EngineListener`.

    Attributes:
        events: all of them, in order.
        hashes: of the blocks that are cached by these events.
        loads: every report, with the ids that it acknowledged.
    """

    def __init__(self) -> None:
        self.events: list[CacheEvent] = []
        self.hashes: set[int] = set()
        self.loads: list[tuple[LoadStat, tuple[str, ...]]] = []

    @property
    def acknowledged(self) -> list[str]:
        """All ids, in order."""
        return [request_id for _, ids in self.loads for request_id in ids]

    def publish(self, events: Sequence[CacheEvent], /) -> None:
        """Take events."""
        for event in events:
            self.events.append(event)
            match event:
                case BlockStored():
                    self.hashes.update(event.block_hashes)
                case BlockRemoved():
                    self.hashes.difference_update(event.block_hashes)
                case AllBlocksCleared():
                    self.hashes.clear()

    def publish_load(self, stat: LoadStat, acknowledged: Sequence[str], /) -> None:
        """Take a report."""
        self.loads.append((stat, tuple(acknowledged)))
