"""Whether a worker that has requests of ours goes on with them."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.engine.remote.load import RemoteLoad
from app.engine.step_watch import StepWatch
from app.events.schema import LoadStat


class WorkerProgress:
    """What shows it: a token of ours, a load report that the worker sends by itself, a load that changes.

    That a request waits for its turn behind others' is no stall: then the load moves. Of a worker that tells
    no load it can't be known, so there only requests that have begun count.

    Args:
        load: has our own requests.
        timeout_s: how much longer than the longest time so far nothing may move.
        clock: monotonic seconds.
    """

    def __init__(
        self, load: RemoteLoad, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load = load
        self._steps = StepWatch(timeout_s, clock)
        self._polled: LoadStat | None = None
        self._tells_load = False

    @property
    def fault(self) -> str | None:
        """Why it should be given nothing now; None: it goes on, as far as is known."""
        if not (self._tells_load or self._load.has_begun):
            return None
        return self._steps.fault()

    def record_sent(self) -> None:
        """A request of ours is on its way."""
        self._steps.begin()

    def record_ended(self) -> None:
        """A request of ours has ended, perhaps because it was taken away from there."""
        if not self._load.num_requests:
            self._steps.rest()

    def record_step(self) -> None:
        """Something moved: a request of ours got a token, for one."""
        self._steps.end()
        if self._load.num_requests:
            self._steps.begin()

    def record_report(self) -> None:
        """A load report came by itself: what counts there lives."""
        self._tells_load = True
        self.record_step()

    def record_polled(self, stat: LoadStat) -> None:
        """This was the answer to a question for its load, which may come from a part that isn't hung."""
        self._tells_load = True
        if stat != self._polled:
            self._polled = stat
            self.record_step()

    def forget(self) -> None:
        """The worker is down, or another one."""
        self._polled, self._tells_load = None, False
        self._steps.end(has_computed=False)
