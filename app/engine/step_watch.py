"""Whether an engine that has work goes on making steps.

    begin ──▶ a step ──▶ end           in time: nothing to say
      └────── no end for `limit_s` ──▶ `fault` says so, until the next end
                                          └── seen for `REPLACE_AFTER` × timeout ──▶ `lasting_fault`

How long a step may take isn't known beforehand: `limit_s` is the timeout beyond the longest step so far. That
counts for the timeout at most: an engine that stood still for an hour isn't given an hour the next time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_STEP_S = 60.0
"""Counts as the longest step until there was one: kernels may be compiled in the first."""
REPLACE_AFTER = 3
"""An engine that is seen to stand still for so many timeouts more doesn't come back by itself."""


class StepWatch:
    """Watches one engine. What begins and ends steps is one thread or event loop; any thread may ask.

    Args:
        timeout_s: how long a step may take beyond the longest so far.
        clock: monotonic seconds.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._longest_s: float | None = None
        self._began_at: float | None = None
        self._seen: tuple[float, float] | None = None
        """When the step that was last seen to stand still began, and when that was first seen."""

    @property
    def limit_s(self) -> float:
        """Seconds that a step may take now."""
        return self._timeout_s + (FIRST_STEP_S if self._longest_s is None else self._longest_s)

    def begin(self) -> None:
        """There is work, so a step should end; does nothing while one goes on."""
        if self._began_at is None:
            self._began_at = self._clock()

    def end(self, *, has_computed: bool = True) -> None:
        """A step has ended, so the engine lives; one without work doesn't say how long they take."""
        began_at, self._began_at = self._began_at, None
        if has_computed and began_at is not None:
            seconds = min(self._clock() - began_at, self._timeout_s)
            self._longest_s = max(seconds, self._longest_s or 0.0)

    def rest(self) -> None:
        """No work is left. An engine that stands still may only have lost it: `end` shows that it goes on."""
        if self.fault() is None:
            self._began_at = None

    def fault(self) -> str | None:
        """Why the engine can be given nothing now; None: it makes its steps."""
        began_at, now = self._began_at, self._clock()
        if began_at is None or now - began_at <= self.limit_s:
            return None
        if self._seen is None or self._seen[0] != began_at:
            self._seen = (began_at, now)
        return f"no step for {now - began_at:.0f} s, though it has work"

    def lasting_fault(self) -> str | None:
        """The same, once it has been seen for so long that the engine should be replaced.

        It counts from the first time that anyone asked, not from the step's beginning: a process that was
        stopped altogether, and goes on, gets time to make its step.
        """
        fault, seen = self.fault(), self._seen
        if fault is None or seen is None:
            return None
        return fault if self._clock() - seen[1] > REPLACE_AFTER * self._timeout_s else None
