"""How long requests stay in a rank's batch, and so how soon what they hold becomes free.

    stay = time that requests spent in the batch / requests that left

As many have left as were acknowledged, less those that are still there; both come with load reports. Those
that haven't left yet count with the time they have spent so far, so a rank whose requests all run for long
says so before the first of them ends: the quotient is the maximum-likelihood estimate for exponential
lifetimes of which some are cut off ("total time on test").

Source: B. Epstein, M. Sobel, "Life Testing", 1953.
"""

from __future__ import annotations

from typing import Final

WINDOW: Final = 64
"""The mean is over about this many of the last requests that left."""


class Residence:
    """Sliding measurement of one rank, or of several together.

    Attributes:
        spent_s: seconds that requests spent in the batch, added up over them.
        num_left: requests that left.
    """

    def __init__(self) -> None:
        self.spent_s = 0.0
        self.num_left = 0.0

    def add(self, spent_s: float, num_left: int) -> None:
        """Count what happened since the last time."""
        self.spent_s += spent_s
        self.num_left += num_left
        if self.num_left > WINDOW:
            self.spent_s *= WINDOW / self.num_left
            self.num_left = WINDOW

    @property
    def stay_s(self) -> float | None:
        """Mean time that a request stays; None until one has left."""
        return self.spent_s / self.num_left if self.num_left else None

    def stay_given(self, others_s: float) -> float:
        """The same, where one request of the other ranks', which stay for `others_s`, is counted too."""
        return (self.spent_s + others_s) / (self.num_left + 1)


class ReportedResidence(Residence):
    """One rank's, from its load reports; each is followed by the acknowledgement of what it counts first."""

    def __init__(self) -> None:
        super().__init__()
        self._reported_at: float | None = None
        self._num_running = 0
        self._num_present = 0
        self._num_before = 0
        """Requests that were here at the report before the last one."""
        self._num_arrived = 0
        """Requests that were acknowledged since the last report."""

    def acknowledge(self, count: int) -> None:
        """So many requests are counted by the last report for the first time."""
        self._num_arrived += count

    def observe(self, num_running: int, num_waiting: int, now: float) -> tuple[float, int]:
        """Take a report of `now`, monotonic seconds; returns what was added.

        Who left before the last report is known only now, when its acknowledgement must have come.
        """
        spent_s, num_left = 0.0, 0
        if self._reported_at is not None:
            spent_s = self._num_running * (now - self._reported_at)
            num_left = max(0, self._num_before + self._num_arrived - self._num_present)
        self._num_before, self._num_present = self._num_present, num_running + num_waiting
        self._num_running, self._num_arrived, self._reported_at = num_running, 0, now
        self.add(spent_s, num_left)
        return spent_s, num_left
