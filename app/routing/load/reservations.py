"""Work that was sent to ranks and that they haven't reported yet.

Load comes from the ranks. A reservation only bridges the gap between choosing a rank and that rank's next
report: it ends when the rank acknowledges the request, when the request is released, when its time is up, or
when the rank is dropped, whichever comes first. So a lost completion can't leak load.

What other routers reserve counts alike, but is received late: the rank may have acknowledged it before.

Time is `now`, monotonic seconds, and never goes back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import NamedTuple

from app.routing.load.load_book import LoadBook
from app.routing.load.request_history import RequestHistory


class Reservation(NamedTuple):
    """What one request adds to a rank's load until the rank counts it itself."""

    rank: int
    uncached_tokens: int
    deadline: float


class Reservations:
    """The reservations of all routers, as far as this one knows. Each request has at most one.

    Args:
        load: counts on each rank what is reserved there.
        timeout_s: how long a reservation lasts at most.

    Attributes:
        num_from_peers: reservations that `add_from_peer` got.
        num_late_from_peers: those of them that had ended, or been replaced, before.
    """

    def __init__(self, load: LoadBook, timeout_s: float) -> None:
        self._load = load
        self._timeout_s = timeout_s
        self._reservations: dict[str, Reservation] = {}
        """In the order of their deadlines: all have the same timeout."""
        self._history = RequestHistory()
        self.num_from_peers = 0
        self.num_late_from_peers = 0

    def __len__(self) -> int:
        """Reservations that nothing has ended yet."""
        return len(self._reservations)

    def on_rank(self, rank: int) -> list[str]:
        """The requests whose reservations on `rank` nothing has ended yet."""
        return [key for key, value in self._reservations.items() if value.rank == rank]

    def supersede(self, request_id: str, choice_seq: int) -> bool:
        """End what an earlier choice for this request has reserved, unless this one was itself overtaken.

        Returns:
            Whether it wasn't: no later choice is known, and the request hasn't been released.
        """
        if self._history.is_overtaken(request_id, choice_seq):
            return False
        self.withdraw(request_id)
        return True

    def add(self, rank: int, request_id: str, uncached_tokens: int, now: float, choice_seq: int = 0) -> None:
        """Count `uncached_tokens` as waiting on `rank` until something ends the reservation.

        A reservation that the same request already has, on any rank, is replaced.
        """
        self._hold(rank, request_id, uncached_tokens, now, choice_seq)
        self._load.add_reserved(rank, uncached_tokens, is_assigned=True)

    def add_from_peer(
        self, rank: int, request_id: str, uncached_tokens: int, now: float, choice_seq: int
    ) -> None:
        """Another router has reserved this; counted as waiting unless it comes too late for that.

        It does when the request was released, acknowledged by this rank, or chosen for again meanwhile. It
        isn't counted as assigned, by which ties are broken: routers that break them alike meet on one rank.
        """
        self.num_from_peers += 1
        if self._history.is_settled(request_id, choice_seq, rank):
            self.num_late_from_peers += 1
        else:
            self._hold(rank, request_id, uncached_tokens, now, choice_seq)
            self._load.add_reserved(rank, uncached_tokens, is_assigned=False)

    def acknowledge(self, rank: int, request_ids: Collection[str]) -> None:
        """`rank` has these requests, so its reports now count them; other ranks' reservations stay."""
        self._load.acknowledge(rank, len(request_ids))
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
            self._load.remove_reserved(reservation.rank, reservation.uncached_tokens)

    def expire(self, now: float) -> None:
        """End every reservation whose deadline has come."""
        while self._reservations:
            request_id = next(iter(self._reservations))
            if self._reservations[request_id].deadline > now:
                break
            self.withdraw(request_id)

    def drop(self, rank: int) -> None:
        """End all reservations on `rank`."""
        for request_id in self.on_rank(rank):
            self.withdraw(request_id)

    def check_integrity(self) -> None:
        """Raises AssertionError when what is counted on the ranks isn't the sum of the reservations."""
        expected: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for each in self._reservations.values():
            tokens, requests = expected[each.rank]
            expected[each.rank] = tokens + each.uncached_tokens, requests + 1
        assert self._load.reserved() == expected, "reserved on the ranks"

    def _hold(self, rank: int, request_id: str, uncached_tokens: int, now: float, choice_seq: int) -> None:
        self.withdraw(request_id)
        self._history.record_choice(request_id, choice_seq)
        self._reservations[request_id] = Reservation(rank, uncached_tokens, now + self._timeout_s)
