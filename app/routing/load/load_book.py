"""How busy each rank is: its last report, plus reservations for what it hasn't reported yet.

Load comes from the ranks. A reservation only bridges the gap between choosing a rank and that rank's next
report: it ends when the rank acknowledges the request, when the request is released, when its time is up, or
when the rank is dropped, whichever comes first. So a lost completion can't leak load.

What other routers reserve counts alike, but is heard late: the rank may have acknowledged it before.

Time is `now`, monotonic seconds, and never goes back.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import NamedTuple

import numpy as np

from app.config import RoutingConfig
from app.events.schema import LoadStat
from app.routing.load.prefill_rates import PrefillRates
from app.routing.load.rank_load import RankLoad
from app.routing.load.request_history import RequestHistory
from app.routing.load.service_time import Occupancy, ServiceTime
from app.routing.membership import RoutableRanks
from app.routing.rank_view import COUNTS, Floats

MEAN_OVER_REQUESTS = 256
"""The mean work of a request is taken over about this many of the last ones."""

_FREE_TOKENS, _RELEASE_S = COUNTS.index("free_tokens"), COUNTS.index("release_s")


class Reservation(NamedTuple):
    """Work that was sent to a rank and that the rank hasn't reported yet."""

    rank: int
    uncached_tokens: int
    deadline: float


class LoadBook:
    """Load of every rank, as one router sees it.

    Args:
        config: gives the reservations' timeout and the prefill rate until one has been measured.

    Attributes:
        num_peer_reservations: reservations that `add_peer_reservation` was told of.
        num_late_peer_reservations: those of them that had ended, or been replaced, before.
    """

    def __init__(self, config: RoutingConfig) -> None:
        self._reservation_timeout_s = config.reservation_timeout_s
        self._initial_prefill_rate = config.initial_prefill_tokens_per_s
        self._ranks: dict[int, RankLoad] = {}
        self._counts = _nothing(8)
        """A row for each of `COUNTS` with an element for each rank, as `_ranks` has them."""
        self._rows = tuple(self._counts)
        """Its rows, which are written one number at a time."""
        self._rates = PrefillRates(config.initial_prefill_tokens_per_s)
        self._reservations: dict[str, Reservation] = {}
        """In the order of their deadlines: all have the same timeout."""
        self._history = RequestHistory()
        self._mean_uncached_tokens: float | None = None
        self._service_time = ServiceTime()
        """Of all ranks."""
        self._num_reserved_ever = 0
        self.num_peer_reservations = 0
        self.num_late_peer_reservations = 0

    @property
    def num_reservations(self) -> int:
        """Reservations that nothing has ended yet."""
        return len(self._reservations)

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

    def assigned(self, rank: int) -> tuple[int, int]:
        """Uncached tokens and requests ever sent to `rank` from here, on top of what `join` began with."""
        load = self._ranks.get(rank)
        return (load.assigned_tokens, load.assigned_requests) if load else (0, 0)

    def columns(self, alive: RoutableRanks) -> tuple[Floats, Floats | float]:
        """Counts and prefill rates of the ranks that are alive, as in `RankViews`; copies."""
        self._make_room(alive.size - 1)
        return self._counts[:, alive.rows].copy(), self._rates.usable(alive)

    def join(self, rank: int) -> None:
        """A new rank starts with the least work assigned to any other, not with zero.

        Ties go to the rank with the least, and a replaced rank would win all of them until it had caught up
        with its peers' history.
        """
        self.drop(rank)
        peers = self._ranks.values()
        self._ranks[rank] = RankLoad(
            assigned_tokens=min((peer.assigned_tokens for peer in peers), default=0),
            assigned_requests=min((peer.assigned_requests for peer in peers), default=0),
        )
        self._write(rank)

    def report(self, rank: int, stat: LoadStat, now: float | None = None) -> None:
        """Take over a rank's own report. Counters that went back mean that the rank restarted.

        What requests take until they leave is learnt from reports whose time is known.
        """
        load = self._load(rank)
        if now is not None:
            self._service_time.add(*load.service_time.observe(stat, now))
        # Before the first request from here, what a running one holds stands for it.
        held_tokens = stat.num_tokens / max(1, stat.num_running_reqs)
        load.mean_uncached_tokens = self._mean_uncached_tokens or held_tokens or 1.0
        load.occupancy = load.service_time.mean_with(
            self._service_time.mean or self._first_occupancy(stat, load)
        )
        load.stat = stat
        self._write(rank)
        self._rows[_RELEASE_S][rank] = load.release_s
        self._rates.observe(rank, stat.total_prefill_uncached_tokens, stat.total_prefill_busy_us)

    def supersede(self, request_id: str, choice_seq: int) -> bool:
        """End what an earlier ask for this request has reserved, unless this one was itself overtaken.

        Returns:
            Whether it wasn't: no later ask is known, and the request hasn't been released.
        """
        if self._history.is_overtaken(request_id, choice_seq):
            return False
        self.withdraw(request_id)
        return True

    def reserve(
        self, rank: int, request_id: str, uncached_tokens: int, now: float, choice_seq: int = 0
    ) -> None:
        """Count `uncached_tokens` as waiting on `rank` until something ends the reservation.

        A reservation that the same request already has, on any rank, is replaced.
        """
        load = self._hold(rank, request_id, uncached_tokens, now, choice_seq)
        load.assigned_tokens += uncached_tokens
        load.assigned_requests += 1
        self._write(rank)
        self._update_mean(uncached_tokens)

    def add_peer_reservation(
        self, rank: int, request_id: str, uncached_tokens: int, now: float, choice_seq: int
    ) -> None:
        """Another router has reserved this; counted as waiting unless it comes too late for that.

        It does when the request was released, acknowledged by this rank, or asked for again meanwhile. It
        isn't counted as assigned, by which ties are broken: routers that break them alike meet on one rank.
        """
        self.num_peer_reservations += 1
        if self._history.is_settled(request_id, choice_seq, rank):
            self.num_late_peer_reservations += 1
        else:
            self._hold(rank, request_id, uncached_tokens, now, choice_seq)
            self._write(rank)

    def acknowledge(self, rank: int, request_ids: Iterable[str]) -> None:
        """`rank` has these requests, so its reports now count them; other ranks' reservations stay."""
        request_ids = list(request_ids)
        if rank in self._ranks:
            self._ranks[rank].service_time.acknowledge(len(request_ids))
        for request_id in request_ids:
            self._history.record_acknowledged(request_id, rank)
            reservation = self._reservations.get(request_id)
            if reservation is not None and reservation.rank == rank:
                self.withdraw(request_id)

    def release(self, request_id: str) -> None:
        """End a request's reservation, if it still has one; it gets no other."""
        self._history.record_released(request_id)
        self.withdraw(request_id)

    def withdraw(self, request_id: str) -> None:
        """End a request's reservation, if it still has one; another may follow."""
        reservation = self._reservations.pop(request_id, None)
        if reservation is not None:
            load = self._ranks[reservation.rank]
            load.reserved_tokens -= reservation.uncached_tokens
            load.reserved_requests -= 1
            self._write(reservation.rank)

    def expire(self, now: float) -> None:
        """End every reservation whose deadline has come."""
        while self._reservations:
            request_id = next(iter(self._reservations))
            if self._reservations[request_id].deadline > now:
                break
            self.withdraw(request_id)

    def reserved_on(self, rank: int) -> list[str]:
        """The requests whose reservations on `rank` nothing has ended yet."""
        return [key for key, value in self._reservations.items() if value.rank == rank]

    def drop(self, rank: int) -> None:
        """Forget everything about `rank`: its report, its rate, its reservations and its assigned work."""
        for request_id in self.reserved_on(rank):
            self.withdraw(request_id)
        if self._ranks.pop(rank, None) is not None:
            self._counts[:, rank] = _nothing(1)[:, 0]
            self._rates.drop(rank)

    def check_integrity(self) -> None:
        """Raises AssertionError when the ranks' sums aren't those of the reservations."""
        for rank, load in self._ranks.items():
            own = [each.uncached_tokens for each in self._reservations.values() if each.rank == rank]
            assert load.reserved_tokens == sum(own), f"rank {rank}: reserved tokens"
            assert load.reserved_requests == len(own), f"rank {rank}: reserved requests"
            expected = tuple(getattr(load, name) for name in COUNTS)
            assert tuple(self._counts[:, rank]) == expected, f"rank {rank}: columns"
        self._rates.check_integrity()
        assert {each.rank for each in self._reservations.values()} <= self._ranks.keys(), (
            "orphaned reservation"
        )

    def _first_occupancy(self, stat: LoadStat, load: RankLoad) -> Occupancy:
        """Until some request has left: as if what is held were released as fast as it is computed."""
        seconds = stat.num_tokens / self._initial_prefill_rate
        return Occupancy(seconds, seconds * load.mean_uncached_tokens)

    def _load(self, rank: int) -> RankLoad:
        load = self._ranks.get(rank)
        if load is None:
            load = self._ranks[rank] = RankLoad()
            self._make_room(rank)
        return load

    def _write(self, rank: int) -> None:
        """Bring the columns up to the rank's load; but for `release_s`, which only reports change."""
        self._make_room(rank)
        load = self._ranks[rank]
        waiting, requests, tokens, assigned, free, place, _ = self._rows
        waiting[rank] = load.waiting_tokens
        requests[rank] = load.num_requests
        tokens[rank] = load.assigned_tokens
        assigned[rank] = load.assigned_requests
        free[rank] = load.free_tokens
        place[rank] = load.batch_slot_wait_s

    def _make_room(self, rank: int) -> None:
        size = self._counts.shape[1]
        if rank >= size:
            missing = max(rank + 1 - size, size)
            self._counts = np.concatenate((self._counts, _nothing(missing)), axis=1)
            self._rows = tuple(self._counts)

    def _hold(
        self, rank: int, request_id: str, uncached_tokens: int, now: float, choice_seq: int
    ) -> RankLoad:
        self.withdraw(request_id)
        self._history.record_choice(request_id, choice_seq)
        deadline = now + self._reservation_timeout_s
        self._reservations[request_id] = Reservation(rank, uncached_tokens, deadline)
        load = self._load(rank)
        load.reserved_tokens += uncached_tokens
        load.reserved_requests += 1
        return load

    def _update_mean(self, uncached_tokens: int) -> None:
        self._num_reserved_ever += 1
        mean = self._mean_uncached_tokens or 0.0
        weight = 1 / min(self._num_reserved_ever, MEAN_OVER_REQUESTS)
        self._mean_uncached_tokens = mean + (uncached_tokens - mean) * weight


def _nothing(size: int) -> Floats:
    """Columns of ranks of which nothing is known."""
    counts = np.zeros((len(COUNTS), size))
    counts[_FREE_TOKENS] = inf
    return counts
