"""One rank's load: its last report, what was reserved there since, and how long its requests stay."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from app.events.schema import LoadStat
from app.routing.load.service_time import NOTHING, Occupancy, ReportedServiceTime
from app.routing.rank_view import Floats, RankCounts


@dataclass(slots=True)
class RankLoad:
    """Kept by `LoadBook`, of which it is one column.

    How soon there is room follows from what a request takes (`Occupancy`). Memory that is full lets one in
    every `token_s` / tokens held, and with it a request's mean uncached tokens.

        release_s = token_s / tokens held / mean uncached tokens
        batch_slot_wait_s = missing places * request_s / requests running

    A rank that holds nothing keeps no request waiting for memory.

    Attributes:
        stat: the last report, if there was one.
        reserved_tokens, reserved_requests: uncached tokens and requests that it doesn't count yet.
        assigned_tokens, assigned_requests: sent there so far.
        service_time: learns from reports what requests take.
        occupancy: what one takes there, as of the last report.
        release_s: seconds from one token's release, for a prompt's uncached ones, to the next, as of then.
    """

    stat: LoadStat | None = None
    reserved_tokens: int = 0
    reserved_requests: int = 0
    assigned_tokens: int = 0
    assigned_requests: int = 0
    service_time: ReportedServiceTime = field(default_factory=ReportedServiceTime)
    occupancy: Occupancy = NOTHING
    release_s: float = 0.0

    def report(self, stat: LoadStat, occupancy: Occupancy, mean_uncached_tokens: float) -> None:
        """Take over a report, with what a request takes there and its mean uncached tokens, anywhere."""
        self.stat = stat
        self.occupancy = occupancy
        held_tokens = stat.num_tokens
        self.release_s = occupancy.token_s / held_tokens / mean_uncached_tokens if held_tokens else 0.0

    def write(self, counts: RankCounts[Floats], position: int) -> None:
        """Write what policies see of the rank to its position in each row, one number after another.

        As one column it would take more than twice as long, and this is done for every choice.
        """
        counts.waiting_tokens[position] = self.waiting_tokens
        counts.num_requests[position] = self.num_requests
        counts.assigned_tokens[position] = self.assigned_tokens
        counts.assigned_requests[position] = self.assigned_requests
        counts.free_tokens[position] = self.free_tokens
        counts.batch_slot_wait_s[position] = self.batch_slot_wait_s
        counts.release_s[position] = self.release_s

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens still to be computed."""
        return self.reserved_tokens + (self.stat.num_waiting_uncached_tokens if self.stat else 0)

    @property
    def num_requests(self) -> int:
        """Running, waiting or on their way."""
        reported = self.stat.num_running_reqs + self.stat.num_waiting_reqs if self.stat else 0
        return reported + self.reserved_requests

    @property
    def free_tokens(self) -> float:
        """Room in the cache beside what requests hold, wait for, or were sent for; infinite if unknown.

        At most 0 where the batch has no place.
        """
        stat = self.stat
        if stat is None or not stat.num_tokens:
            return inf
        free = stat.max_total_num_tokens - stat.num_total_tokens - self.reserved_tokens
        return min(free, 0) if self._missing_places(stat) else free

    @property
    def batch_slot_wait_s(self) -> float:
        """Seconds until the batch has a place."""
        stat = self.stat
        if stat is None or not stat.num_tokens:
            return 0.0
        return self._missing_places(stat) * self.occupancy.request_s / max(1, stat.num_running_reqs)

    def _missing_places(self, stat: LoadStat) -> int:
        """Requests that must leave the batch before one more gets into it."""
        return max(0, self.num_requests + 1 - stat.max_running_requests)
