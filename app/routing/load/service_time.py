"""What requests take of a rank's batch and of its memory until they leave, and so how soon there is room.

    request_s = time that requests spent in the batch / requests that left
    token_s   = the same, each multiplied by the tokens that it held

As many have left as were acknowledged, less those that are still there; both come with load reports. Those
that haven't left yet count with the time they have spent so far, so a rank whose requests all run for long
says so before the first of them ends: the quotient is the maximum-likelihood estimate for exponential
lifetimes of which some are cut off ("total time on test"). By Little's law, places and memory that are all
taken serve one request after another, in the time that one takes of them / their number.

Source: B. Epstein, M. Sobel, "Life Testing", 1953.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from app.events.schema import LoadStat

WINDOW: Final = 64
"""The means are over about this many of the last requests that left."""


class Occupancy(NamedTuple):
    """What one request takes, or what several took.

    Attributes:
        request_s: seconds in the batch.
        token_s: tokens held, times seconds.
    """

    request_s: float
    token_s: float


NOTHING: Final = Occupancy(0.0, 0.0)


class ServiceTime:
    """Sliding measurement of one rank, or of several together."""

    def __init__(self) -> None:
        self._taken = NOTHING
        self._num_left = 0.0

    def add(self, taken: Occupancy, num_left: int) -> None:
        """Count what was taken since the last time, and how many requests left."""
        request_s, token_s = (before + since for before, since in zip(self._taken, taken, strict=True))
        num_left_now = self._num_left + num_left
        scale = min(1.0, WINDOW / num_left_now) if num_left_now else 1.0
        self._taken = Occupancy(request_s * scale, token_s * scale)
        self._num_left = num_left_now * scale

    @property
    def mean(self) -> Occupancy | None:
        """What a request takes; None until one has left."""
        if not self._num_left:
            return None
        return Occupancy(self._taken.request_s / self._num_left, self._taken.token_s / self._num_left)

    def mean_with(self, other: Occupancy) -> Occupancy:
        """The same, where one request that took `other` is counted too."""
        count = self._num_left + 1
        return Occupancy(
            (self._taken.request_s + other.request_s) / count, (self._taken.token_s + other.token_s) / count
        )


class ReportedServiceTime(ServiceTime):
    """One rank's, from its load reports; each is followed by the acknowledgement of what it counts first."""

    def __init__(self) -> None:
        super().__init__()
        self._reported_at: float | None = None
        self._num_running = 0
        self._held_tokens = 0
        self._num_present = 0
        self._num_before = 0
        """Requests that were here at the report before the last one."""
        self._num_arrived = 0
        """Requests that were acknowledged since the last report."""

    def acknowledge(self, count: int) -> None:
        """So many requests are counted by the last report for the first time."""
        self._num_arrived += count

    def observe(self, stat: LoadStat, now: float) -> tuple[Occupancy, int]:
        """Take a report of `now`, monotonic seconds; returns what was added.

        How many left before the last report is known only now, when its acknowledgement must have come.
        """
        taken, num_left = NOTHING, 0
        if self._reported_at is not None:
            seconds = now - self._reported_at
            taken = Occupancy(self._num_running * seconds, self._held_tokens * seconds)
            num_left = max(0, self._num_before + self._num_arrived - self._num_present)
        self._num_before, self._num_present = self._num_present, stat.num_running_reqs + stat.num_waiting_reqs
        self._num_running, self._held_tokens = stat.num_running_reqs, stat.num_tokens
        self._num_arrived, self._reported_at = 0, now
        self.add(taken, num_left)
        return taken, num_left
