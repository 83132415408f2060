"""What routers learn of the ranks, and when: their events and their load, late or lost on the way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from app.events.schema import CacheEvent, LoadStat
from app.routing.index.index_writer import IndexWriter
from app.simulation.clock import Clock
from app.simulation.config import FeedConfig
from app.simulation.ranks.rank import Rank
from app.simulation.routers import Routers


class Feed:
    """Carries batches of events into the routers' index and load reports into every router's load book.

    A rank's batches stay in order. One that is lost leaves a gap until it has been replayed, and what came
    after it waits for that; the rank isn't exact meanwhile, as with a real subscriber.

    Args:
        config: delays and losses.
        clock: gives the time and runs what is late.
        ranks: all ranks, by number.
        routers: written to.
        seed: of the losses.
    """

    def __init__(
        self,
        config: FeedConfig,
        clock: Clock,
        ranks: Sequence[Rank],
        routers: Routers,
        seed: int,
    ) -> None:
        self._config = config
        self._clock = clock
        self._ranks = ranks
        self._routers = routers
        self._rng = random.Random(seed)
        self._writers = [IndexWriter(routers.index, rank) for rank in range(len(ranks))]
        self._due = [0.0] * len(ranks)
        """When each rank's last batch comes, or came."""
        self._busy: dict[int, None] = {}
        """Ranks that have something to report, in a fixed order."""
        self._unacknowledged: dict[int, list[str]] = {}
        for rank in range(len(ranks)):
            for core in routers.cores:
                core.join(rank)
            routers.membership.set(rank, "exact")

    def publish(self, rank: int) -> None:
        """Send what has changed in `rank`'s cache."""
        events = self._ranks[rank].drain_events()
        if not events:
            return
        due = self._clock.now + self._config.event_delay_s
        if self._config.event_loss and self._rng.random() < self._config.event_loss:
            self._clock.schedule(due, partial(self._find_gap, rank))
            due += self._config.recovery_s
        self._due[rank] = max(due, self._due[rank])
        if self._due[rank] <= self._clock.now:
            self._apply(rank, events)
        else:
            self._clock.schedule(self._due[rank], partial(self._apply, rank, events))

    def record_arrival(self, rank: int, request_id: str) -> None:
        """`rank` has got a request: its next report counts it."""
        self._unacknowledged.setdefault(rank, []).append(request_id)
        if rank not in self._busy:
            self._busy[rank] = None
            if self._is_timed:
                self._report_in_turn(rank)

    def refresh(self) -> None:
        """Bring the load book up to now, where load is known at once."""
        if not self._is_timed:
            for rank in list(self._busy):
                self._deliver(rank, self._ranks[rank].load(self._clock.now), self._take_arrivals(rank))
                if self._ranks[rank].is_idle:
                    del self._busy[rank]

    @property
    def _is_timed(self) -> bool:
        return self._config.load_interval_s > 0

    def _find_gap(self, rank: int) -> None:
        self._routers.membership.set(rank, "syncing")

    def _apply(self, rank: int, events: Sequence[CacheEvent]) -> None:
        self._writers[rank].apply(events)
        if self._due[rank] <= self._clock.now:
            self._routers.membership.set(rank, "exact")

    def _report_in_turn(self, rank: int) -> None:
        """Report now, and again after the interval while there is something to report."""
        now = self._clock.now
        stat, arrived = self._ranks[rank].load(now), self._take_arrivals(rank)
        self._clock.schedule(now + self._config.load_delay_s, partial(self._deliver, rank, stat, arrived))
        if self._ranks[rank].is_idle:
            del self._busy[rank]
        else:
            self._clock.schedule(now + self._config.load_interval_s, partial(self._report_in_turn, rank))

    def _take_arrivals(self, rank: int) -> list[str]:
        return self._unacknowledged.pop(rank, [])

    def _deliver(self, rank: int, stat: LoadStat, arrived: Sequence[str]) -> None:
        for core in self._routers.cores:
            core.load.report(rank, stat, self._clock.now)
            core.reservations.acknowledge(rank, arrived)
