"""How busy each rank is: its last report, plus reservations for what it hasn't reported yet.

Load comes from the ranks. A reservation only bridges the gap between choosing a rank and that rank's next
report: it ends when the rank acknowledges the request, when the request is released, when its time is up, or
when the rank is dropped, whichever comes first. So a lost completion can't leak load.

Time is `now`, monotonic seconds, and never goes back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf, isnan
from typing import NamedTuple

import numpy as np

from app.config import RoutingConfig
from app.events.schema import LoadStat
from app.routing.membership import Alive
from app.routing.prefill_rate import PrefillRate
from app.routing.rank_view import COUNTS, Floats
from app.routing.residence import Residence, ReportedResidence

MEAN_OVER_REQUESTS = 256
"""The mean work of a request is taken over about this many of the last ones."""
RATE_NOISE = 0.5
"""Prefill rates this close to their median, relative to it, count as equal: see `LoadBook._usable_rates`."""


class Reservation(NamedTuple):
    """Work that was sent to a rank and that the rank hasn't reported yet."""

    rank: int
    uncached_tokens: int
    deadline: float


@dataclass(slots=True)
class _RankLoad:
    stat: LoadStat | None = None
    prefill_rate: PrefillRate = field(default_factory=PrefillRate)
    reserved_tokens: int = 0
    reserved_requests: int = 0
    assigned_tokens: int = 0
    assigned_requests: int = 0
    residence: ReportedResidence = field(default_factory=ReportedResidence)
    stay_s: float = 0.0
    """How long a request stays in the batch."""

    @property
    def free_tokens(self) -> float:
        """Room in the cache beside what requests hold, wait for, or were sent for; infinite if unknown."""
        stat = self.stat
        if stat is None or not stat.num_tokens:
            return inf
        free = stat.max_total_num_tokens - stat.num_total_tokens - self.reserved_tokens
        return free if self.missing_places == 0 else min(free, 0)

    @property
    def missing_places(self) -> int:
        """Requests that must leave the batch before one more gets into it."""
        stat = self.stat
        if stat is None or not stat.num_tokens:
            return 0
        return max(0, self.num_requests + 1 - stat.max_running_requests)

    @property
    def release_s(self) -> float:
        """Seconds until a token is released: all that are held are, once in the time a request stays."""
        return self.stay_s / self.stat.num_tokens if self.stat and self.stat.num_tokens else 0.0

    @property
    def place_wait_s(self) -> float:
        """Seconds until there is a place in the batch."""
        stat = self.stat
        if stat is None or not self.missing_places:
            return 0.0
        return self.missing_places * self.stay_s / max(1, stat.num_running_reqs)

    @property
    def waiting_tokens(self) -> int:
        return self.reserved_tokens + (self.stat.num_waiting_uncached_tokens if self.stat else 0)

    @property
    def num_requests(self) -> int:
        reported = self.stat.num_running_reqs + self.stat.num_waiting_reqs if self.stat else 0
        return reported + self.reserved_requests


class LoadBook:
    """Load of every rank, as one router sees it.

    Args:
        config: gives the reservations' timeout and the prefill rate until one has been measured.
    """

    def __init__(self, config: RoutingConfig) -> None:
        self._reservation_timeout_s = config.reservation_timeout_s
        self._initial_prefill_rate = config.initial_prefill_tokens_per_s
        self._ranks: dict[int, _RankLoad] = {}
        self._counts = np.zeros((len(COUNTS), 8))
        """A row for each of `COUNTS` with an element for each rank, as `_ranks` has them."""
        self._rows = tuple(self._counts)
        """Its rows, which are written one number at a time."""
        self._rates = np.full(8, np.nan)
        """Measured prefill rate of each rank; nan where there is none."""
        self._measured_rates: list[float] = []
        """The measured ones, ascending."""
        self._reservations: dict[str, Reservation] = {}
        """In the order of their deadlines: all have the same timeout."""
        self._mean_uncached_tokens: float | None = None
        self._residence = Residence()
        """Of all ranks."""
        self._num_reserved_ever = 0

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

    def columns(self, alive: Alive) -> tuple[Floats, Floats | float]:
        """Counts and prefill rates of the ranks that are alive, as in `RankViews`; copies."""
        self._make_room(alive.size - 1)
        return self._counts[:, alive.rows].copy(), self._usable_rates(alive)

    def join(self, rank: int) -> None:
        """A new rank starts with the least work assigned to any other, not with zero.

        Ties go to the rank with the least, and a replaced rank would win all of them until it had caught up
        with its peers' history.
        """
        self.drop(rank)
        peers = self._ranks.values()
        self._ranks[rank] = _RankLoad(
            assigned_tokens=min((peer.assigned_tokens for peer in peers), default=0),
            assigned_requests=min((peer.assigned_requests for peer in peers), default=0),
        )
        self._write(rank)

    def report(self, rank: int, stat: LoadStat, now: float | None = None) -> None:
        """Take over a rank's own report. Counters that went back mean that the rank restarted.

        How long requests stay is learnt from reports whose time is known.
        """
        load = self._load(rank)
        if now is not None:
            self._residence.add(*load.residence.observe(stat.num_running_reqs, stat.num_waiting_reqs, now))
        # Until somebody has left, as if what is held were released as fast as it was computed.
        others_s = self._residence.stay_s or stat.num_tokens / self._initial_prefill_rate
        load.stay_s = load.residence.stay_given(others_s)
        load.stat = stat
        load.prefill_rate.observe(stat.total_prefill_uncached_tokens, stat.total_prefill_busy_us)
        self._write(rank)
        self._note_rate(rank, load.prefill_rate.tokens_per_s)

    def reserve(self, rank: int, request_id: str, uncached_tokens: int, now: float) -> None:
        """Count `uncached_tokens` as waiting on `rank` until something ends the reservation.

        A reservation that the same request already has, on any rank, is replaced.
        """
        self.release(request_id)
        deadline = now + self._reservation_timeout_s
        self._reservations[request_id] = Reservation(rank, uncached_tokens, deadline)
        load = self._load(rank)
        load.reserved_tokens += uncached_tokens
        load.reserved_requests += 1
        load.assigned_tokens += uncached_tokens
        load.assigned_requests += 1
        self._write(rank)
        self._update_mean(uncached_tokens)

    def acknowledge(self, rank: int, request_ids: Iterable[str]) -> None:
        """`rank` has these requests, so its reports now count them; other ranks' reservations stay."""
        request_ids = list(request_ids)
        if rank in self._ranks:
            self._ranks[rank].residence.acknowledge(len(request_ids))
        for request_id in request_ids:
            reservation = self._reservations.get(request_id)
            if reservation is not None and reservation.rank == rank:
                self.release(request_id)

    def release(self, request_id: str) -> None:
        """End a request's reservation, if it still has one."""
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
            self.release(request_id)

    def reserved_on(self, rank: int) -> list[str]:
        """The requests whose reservations on `rank` nothing has ended yet."""
        return [key for key, value in self._reservations.items() if value.rank == rank]

    def drop(self, rank: int) -> None:
        """Forget everything about `rank`: its report, its rate, its reservations and its assigned work."""
        for request_id in self.reserved_on(rank):
            self.release(request_id)
        if self._ranks.pop(rank, None) is not None:
            self._counts[:, rank] = 0
            self._note_rate(rank, None)

    def check_integrity(self) -> None:
        """Raises AssertionError when the ranks' sums aren't those of the reservations."""
        for rank, load in self._ranks.items():
            own = [each.uncached_tokens for each in self._reservations.values() if each.rank == rank]
            assert load.reserved_tokens == sum(own), f"rank {rank}: reserved tokens"
            assert load.reserved_requests == len(own), f"rank {rank}: reserved requests"
            expected = tuple(getattr(load, name) for name in COUNTS)
            assert tuple(self._counts[:, rank]) == expected, f"rank {rank}: columns"
            measured = load.prefill_rate.tokens_per_s
            assert self._rates[rank] == measured or (measured is None and np.isnan(self._rates[rank]))
        assert self._measured_rates == np.sort(self._rates)[: len(self._measured_rates)].tolist(), "rates"
        assert len(self._measured_rates) == np.count_nonzero(~np.isnan(self._rates)), "rates"
        assert {each.rank for each in self._reservations.values()} <= self._ranks.keys(), (
            "orphaned reservation"
        )

    def _load(self, rank: int) -> _RankLoad:
        load = self._ranks.get(rank)
        if load is None:
            load = self._ranks[rank] = _RankLoad()
            self._make_room(rank)
        return load

    def _write(self, rank: int) -> None:
        """Bring the columns up to the rank's load."""
        self._make_room(rank)
        load = self._ranks[rank]
        waiting, requests, tokens, assigned, free, release, place = self._rows
        waiting[rank] = load.waiting_tokens
        requests[rank] = load.num_requests
        tokens[rank] = load.assigned_tokens
        assigned[rank] = load.assigned_requests
        free[rank] = load.free_tokens
        release[rank] = load.release_s
        place[rank] = load.place_wait_s

    def _make_room(self, rank: int) -> None:
        missing = rank + 1 - len(self._rates)
        if missing > 0:
            missing = max(missing, len(self._rates))
            self._counts = np.pad(self._counts, ((0, 0), (0, missing)))
            self._rows = tuple(self._counts)
            self._rates = np.pad(self._rates, (0, missing), constant_values=np.nan)

    def _note_rate(self, rank: int, tokens_per_s: float | None) -> None:
        """The rank's measured rate is this now; None: it has none."""
        before = self._rates.item(rank)
        if before == tokens_per_s:
            return
        if not isnan(before):
            del self._measured_rates[bisect_left(self._measured_rates, before)]
        if tokens_per_s is not None:
            insort(self._measured_rates, tokens_per_s)
        self._rates[rank] = np.nan if tokens_per_s is None else tokens_per_s

    def _usable_rates(self, alive: Alive) -> Floats | float:
        """Uncached prompt tokens per second of each rank, always above 0; one number where all are alike.

        The ranks of one deployment are meant to be equal, and a measurement mustn't make one of them win
        every tie. It errs by more than noise: a step costs something whatever its tokens, so a rank that
        computes short remainders of cached prompts looks slower than one that computes whole ones. So a
        measured rate counts only where it differs from the median of all measured ones by more than
        `RATE_NOISE`, as another kind of device would; otherwise the median does. A rank that hasn't been
        measured has the median too, or the configured initial rate when there is none.
        """
        measured = self._measured_rates
        if not measured:
            return self._initial_prefill_rate
        middle = len(measured) // 2
        typical = (measured[middle] + measured[-1 - middle]) / 2
        if typical - measured[0] <= RATE_NOISE * typical and measured[-1] - typical <= RATE_NOISE * typical:
            return typical
        rates = self._rates[alive.rows]
        # A comparison with nan, a rate that wasn't measured, is false.
        return np.where(np.abs(rates - typical) > RATE_NOISE * typical, rates, typical)

    def _update_mean(self, uncached_tokens: int) -> None:
        self._num_reserved_ever += 1
        mean = self._mean_uncached_tokens or 0.0
        weight = 1 / min(self._num_reserved_ever, MEAN_OVER_REQUESTS)
        self._mean_uncached_tokens = mean + (uncached_tokens - mean) * weight
