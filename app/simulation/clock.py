"""Virtual time: what is to happen, in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """A heap of actions by time; those of one moment run in the order in which they were scheduled.

    Attributes:
        now: seconds; the moment of the action that runs, or the last that `run_until` came to.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._num_scheduled = 0

    def schedule(self, moment: float, action: Callable[[], None]) -> None:
        """Have `action` run at `moment`, which isn't before now."""
        assert moment >= self.now, f"{moment} is over at {self.now}"
        heapq.heappush(self._actions, (moment, self._num_scheduled, action))
        self._num_scheduled += 1

    def run_until(self, moment: float) -> None:
        """Run everything that is due up to and at `moment`, and what that schedules for then."""
        while self._actions and self._actions[0][0] <= moment:
            self.now, _, action = heapq.heappop(self._actions)
            action()
        self.now = moment

    def run(self) -> None:
        """Run until nothing is left to happen."""
        while self._actions:
            self.run_until(self._actions[0][0])
