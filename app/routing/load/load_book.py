"""How busy each rank is: its last report, plus what is reserved there and not reported yet."""

from __future__ import annotations

import numpy as np

from app.events.schema import LoadStat
from app.routing.load.prefill_rates import PrefillRates
from app.routing.load.rank_load import RankLoad
from app.routing.load.service_time import Occupancy, ServiceTime
from app.routing.membership import RoutableRanks
from app.routing.rank_view import UNKNOWN, Floats, RankCounts
from app.settings.routing import RoutingConfig

MEAN_OVER_REQUESTS = 256
"""The mean work of a request is taken over about this many of the last ones."""


class LoadBook:
    """Load of every rank, as one router sees it.

    Args:
        config: gives the prefill rate until one has been measured.
    """

    def __init__(self, config: RoutingConfig) -> None:
        self._initial_prefill_rate = config.initial_prefill_tokens_per_s
        self._ranks: dict[int, RankLoad] = {}
        self._counts = _unknown(8)
        """What `RankLoad.write` writes of each rank in `_ranks`; its rows are those of `ROWS`."""
        self._rows = RankCounts(*self._counts)
        """The same rows by name."""
        self._rates = PrefillRates(config.initial_prefill_tokens_per_s)
        self._mean_uncached_tokens: float | None = None
        self._service_time = ServiceTime()
        """Of all ranks."""
        self._num_assigned = 0

    @property
    def mean_uncached_tokens(self) -> float | None:
        """Mean uncached tokens of the last few hundred requests; None before the first."""
        return self._mean_uncached_tokens

    def last_report(self, rank: int) -> LoadStat | None:
        """What `rank` last said of itself."""
        load = self._ranks.get(rank)
        return load.stat if load else None

    def waiting_tokens(self, rank: int) -> int:
        """Prompt tokens that `rank` has still to compute: reported, plus reserved and unacknowledged."""
        load = self._ranks.get(rank)
        return load.waiting_tokens if load else 0

    def num_requests(self, rank: int) -> int:
        """Requests running or waiting on `rank`, plus those reserved and unacknowledged."""
        load = self._ranks.get(rank)
        return load.num_requests if load else 0

    def reserved(self) -> dict[int, tuple[int, int]]:
        """Uncached tokens and requests that are reserved, by rank, where there are any."""
        return {
            rank: (load.reserved_tokens, load.reserved_requests)
            for rank, load in self._ranks.items()
            if load.reserved_tokens or load.reserved_requests
        }

    def columns(self, routable: RoutableRanks) -> tuple[Floats, Floats | float]:
        """Counts and prefill rates of the routable ranks, as in `RankViews`; copies."""
        self._make_room(routable.size - 1)
        return self._counts[:, routable.rows].copy(), self._rates.usable(routable)

    def prefill_rates(self, routable: RoutableRanks) -> Floats | float:
        """Uncached prompt tokens per second of the routable ranks, as in `RankViews`."""
        return self._rates.usable(routable)

    def join(self, rank: int) -> None:
        """A new rank, that nothing is known of, starts with the least work assigned to any, not with zero.

        Ties go to the rank with the least, and a replaced rank would win all of them until it had caught up
        with its peers' history.
        """
        assert rank not in self._ranks, f"rank {rank} is there already"
        peers = self._ranks.values()
        load = RankLoad(
            assigned_tokens=min((peer.assigned_tokens for peer in peers), default=0),
            assigned_requests=min((peer.assigned_requests for peer in peers), default=0),
        )
        self._make_room(rank)
        self._ranks[rank] = load
        load.write(self._rows, rank)

    def report(self, rank: int, stat: LoadStat, now: float | None = None) -> None:
        """Take over a rank's own report. Counters that went back mean that the rank restarted.

        What requests take until they leave is learnt from reports whose time, monotonic seconds, is known.
        """
        load = self._load(rank)
        if now is not None:
            self._service_time.add(*load.service_time.observe(stat, now))
        # Before the first request from here, what a running one holds stands for it.
        held_tokens = stat.num_tokens / max(1, stat.num_running_reqs)
        mean_uncached_tokens = self._mean_uncached_tokens or held_tokens or 1.0
        typical = self._service_time.mean or self._first_occupancy(stat, mean_uncached_tokens)
        load.report(stat, load.service_time.mean_with(typical), mean_uncached_tokens)
        load.write(self._rows, rank)
        self._rates.observe(rank, stat.total_prefill_uncached_tokens, stat.total_prefill_busy_us)

    def add_reserved(self, rank: int, uncached_tokens: int, *, is_assigned: bool) -> None:
        """Count one request more as on its way to `rank`; `is_assigned`: from here, not from a peer."""
        load = self._load(rank)
        load.reserved_tokens += uncached_tokens
        load.reserved_requests += 1
        if is_assigned:
            load.assigned_tokens += uncached_tokens
            load.assigned_requests += 1
            self._update_mean(uncached_tokens)
        load.write(self._rows, rank)

    def remove_reserved(self, rank: int, uncached_tokens: int) -> None:
        """One request is no longer on its way to `rank`: it is there, or won't be."""
        load = self._ranks[rank]
        load.reserved_tokens -= uncached_tokens
        load.reserved_requests -= 1
        load.write(self._rows, rank)

    def acknowledge(self, rank: int, count: int) -> None:
        """So many requests are counted by the rank's last report for the first time."""
        load = self._ranks.get(rank)
        if load is not None:
            load.service_time.acknowledge(count)

    def drop(self, rank: int) -> None:
        """Forget everything about `rank`, where nothing is reserved: its report, rate and assigned work."""
        load = self._ranks.pop(rank, None)
        if load is not None:
            assert not load.reserved_requests, f"rank {rank} is dropped before its reservations"
            self._counts[:, rank] = UNKNOWN
            self._rates.drop(rank)

    def check_integrity(self) -> None:
        """Raises AssertionError when the columns aren't the ranks' counts."""
        for rank, load in self._ranks.items():
            expected = _unknown(1)
            load.write(RankCounts(*expected), 0)
            assert np.array_equal(self._counts[:, rank], expected[:, 0]), f"rank {rank}: columns"
        self._rates.check_integrity()

    def _first_occupancy(self, stat: LoadStat, mean_uncached_tokens: float) -> Occupancy:
        """Until some request has left: as if what is held were released as fast as it is computed."""
        seconds = stat.num_tokens / self._initial_prefill_rate
        return Occupancy(seconds, seconds * mean_uncached_tokens)

    def _load(self, rank: int) -> RankLoad:
        load = self._ranks.get(rank)
        if load is None:
            self._make_room(rank)
            load = self._ranks[rank] = RankLoad()
        return load

    def _make_room(self, rank: int) -> None:
        size = self._counts.shape[1]
        if rank >= size:
            missing = max(rank + 1 - size, size)
            self._counts = np.concatenate((self._counts, _unknown(missing)), axis=1)
            self._rows = RankCounts(*self._counts)

    def _update_mean(self, uncached_tokens: int) -> None:
        self._num_assigned += 1
        mean = self._mean_uncached_tokens or 0.0
        weight = 1 / min(self._num_assigned, MEAN_OVER_REQUESTS)
        self._mean_uncached_tokens = mean + (uncached_tokens - mean) * weight


def _unknown(size: int) -> Floats:
    """Columns of ranks of which nothing is known."""
    return np.tile(np.array([UNKNOWN]).transpose(), size)
