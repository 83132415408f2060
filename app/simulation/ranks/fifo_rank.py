"""The simplest rank: a first-in-first-out queue of prompts, nothing decoded.

    time to first token = wait + uncached tokens / prefill rate

A prompt is looked up, and all of its blocks cached, at its arrival. So everything is known then.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from app.events.schema import CacheEvent, LoadStat
from app.simulation.config import RankConfig
from app.simulation.ranks.rank import OnFirstToken, check_fits, new_cache, new_table, num_reusable_blocks
from app.simulation.traces.request import SimulatedRequest


class FifoRank:
    """See the module. Implements `Rank`.

    Args:
        number: the rank's number.
        config: its rate and cache.
        on_first_token: called for each request at its arrival, with the moment to come.
    """

    def __init__(self, number: int, config: RankConfig, on_first_token: OnFirstToken) -> None:
        self._number = number
        self._config = config
        self._on_first_token = on_first_token
        self._cache = new_cache(config)
        self._free_at = 0.0
        self._ends: deque[float] = deque()
        """When each request here will be through, in order."""
        self._assigned_tokens = 0

    @property
    def next_change(self) -> float:
        """Never: all that happens happens at arrivals."""
        return math.inf

    @property
    def is_idle(self) -> bool:
        """Whether all requests are through."""
        return not self._ends

    def arrive(self, position: int, request: SimulatedRequest, digests: Sequence[bytes], now: float) -> None:
        """Queue a request."""
        check_fits(len(digests), position, self._config)
        cached_tokens = self._use_cache(request, digests) * self._config.block_size
        uncached_tokens = request.num_tokens - cached_tokens
        self._assigned_tokens += uncached_tokens
        self._free_at = max(self._free_at, now) + uncached_tokens / self._config.prefill_tokens_per_s
        self._ends.append(self._free_at)
        self._on_first_token(position, self._free_at, cached_tokens)

    def advance(self, now: float) -> None:
        """Forget the requests that are through."""
        while self._ends and self._ends[0] <= now:
            self._ends.popleft()

    def load(self, now: float) -> LoadStat:
        """The load at `now`, of which the waiting tokens include those being computed."""
        self.advance(now)
        rate = self._config.prefill_tokens_per_s
        waiting_tokens = round(max(0.0, self._free_at - now) * rate)
        done = self._assigned_tokens - waiting_tokens
        return LoadStat(
            num_running_reqs=min(1, len(self._ends)),
            num_waiting_reqs=max(0, len(self._ends) - 1),
            num_tokens=0,
            max_total_num_tokens=self._config.num_blocks * self._config.block_size,
            dp_rank=self._number,
            num_waiting_uncached_tokens=waiting_tokens,
            num_total_tokens=waiting_tokens,
            max_running_requests=1,
            total_prefill_uncached_tokens=done,
            total_prefill_busy_us=round(done / rate * 1e6),
        )

    def drain_events(self) -> list[CacheEvent]:
        """What has changed in the cache since the last call."""
        return self._cache.drain_events()

    def _use_cache(self, request: SimulatedRequest, digests: Sequence[bytes]) -> int:
        """Cache the prompt's blocks; returns how many of them were there for use."""
        table = new_table(digests)
        num_cached = self._cache.match(digests)
        self._cache.open(table, num_cached)
        is_grown = self._cache.grow(table, len(digests))
        assert is_grown, "no other request holds blocks"
        self._cache.commit(table, request.block_ids, len(digests))
        self._cache.close(table)
        return min(num_cached, num_reusable_blocks(request, self._config))
