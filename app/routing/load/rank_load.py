"""One rank's load: its last report, what was reserved there since, and how long its requests stay."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from app.events.schema import LoadStat
from app.routing.load.service_time import NOTHING, Occupancy, ReportedServiceTime


@dataclass(slots=True)
class RankLoad:
    """Kept by `LoadBook`, of which it is one row.

    How soon there is room follows from what a request takes (`Occupancy`). Memory that is full lets one in
    every `token_s` / tokens held, and with it a request's mean uncached tokens.

        release_s = token_s / tokens held / mean uncached tokens
        batch_slot_wait_s = missing places * request_s / requests running

    A rank that holds nothing keeps nobody waiting for memory.

    Attributes:
        stat: the last report, if there was one.
        reserved_tokens, reserved_requests: uncached tokens and requests that it doesn't count yet.
        assigned_tokens, assigned_requests: sent there so far.
        service_time: learns from reports what requests take.
        occupancy: what one takes there.
        mean_uncached_tokens: of a request, anywhere.
    """

    stat: LoadStat | None = None
    reserved_tokens: int = 0
    reserved_requests: int = 0
    assigned_tokens: int = 0
    assigned_requests: int = 0
    service_time: ReportedServiceTime = field(default_factory=ReportedServiceTime)
    occupancy: Occupancy = NOTHING
    mean_uncached_tokens: float = 1.0

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
    def release_s(self) -> float:
        """Seconds from one token's release, for a prompt's uncached ones, to the next."""
        if self.stat is None or not self.stat.num_tokens:
            return 0.0
        return self.occupancy.token_s / self.stat.num_tokens / self.mean_uncached_tokens

    @property
    def batch_slot_wait_s(self) -> float:
        """Seconds until the batch has a place."""
        stat = self.stat
        if stat is None or not stat.num_tokens:
            return 0.0
        return self._missing_places(stat) * self.occupancy.request_s / max(1, stat.num_running_reqs)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens still to be computed."""
        return self.reserved_tokens + (self.stat.num_waiting_uncached_tokens if self.stat else 0)

    @property
    def num_requests(self) -> int:
        """Running, waiting or on their way."""
        reported = self.stat.num_running_reqs + self.stat.num_waiting_reqs if self.stat else 0
        return reported + self.reserved_requests

    def _missing_places(self, stat: LoadStat) -> int:
        """Requests that must leave the batch before one more gets into it."""
        return max(0, self.num_requests + 1 - stat.max_running_requests)
