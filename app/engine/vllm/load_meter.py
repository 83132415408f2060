"""What one rank's load reports count, from what is admitted and what vLLM says after each of its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.events.schema import LoadStat


@dataclass(frozen=True, slots=True)
class StepStats:
    """What vLLM says after a step.

    Attributes:
        num_running: sequences that hold blocks.
        cache_usage: share of the cache's blocks that they hold.
        num_prefill_tokens, num_decode_tokens: what the step computed; 0 where vLLM doesn't say it.
    """

    num_running: int
    cache_usage: float
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0


@dataclass(slots=True, eq=False)
class LiveSample:
    """One sample that vLLM has.

    Attributes:
        num_prompt_tokens: tokens that it was given.
        num_pending_tokens: those of them that it must still compute, as far as is known here.
        has_begun: it has its first token.
    """

    num_prompt_tokens: int
    num_pending_tokens: int
    has_begun: bool = False


class LoadMeter:
    """Counts samples and measures the prefill rate. All of it on the event loop.

    A step's time is that between the stats of two steps, or from the admission that ended idleness. So the
    sum of all is the time that vLLM was busy, however late the event loop hears of a step. As in the torch
    engine, a mixed step's time belongs to prefill by its share of the tokens.

    Args:
        dp_rank: the rank's number; it may be changed.
        num_cache_tokens: tokens that the cache holds.
        max_running: samples in one batch at most.
        clock: seconds.
    """

    def __init__(
        self,
        dp_rank: int,
        num_cache_tokens: int,
        max_running: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dp_rank = dp_rank
        self._num_cache_tokens = num_cache_tokens
        self._max_running = max_running
        self._clock = clock
        self._live: dict[LiveSample, None] = {}
        self._num_running = 0
        self._cache_usage = 0.0
        self._step_began_at = 0.0
        self._num_prefilled_tokens = 0
        self._prefill_busy_us = 0.0

    @property
    def num_waiting(self) -> int:
        """Samples without a token yet, but for as many as run beside those that have one."""
        return len(self._waiting())

    @property
    def is_busy(self) -> bool:
        """Whether there is any sample."""
        return bool(self._live)

    @property
    def num_pending_tokens(self) -> int:
        """Prompt tokens still to compute."""
        return sum(sample.num_pending_tokens for sample in self._live)

    @property
    def wait_s(self) -> float:
        """Seconds until all of these are computed, at the rate measured so far; infinite where none is."""
        if not self._num_prefilled_tokens:
            return math.inf
        return self.num_pending_tokens * self._prefill_busy_us / self._num_prefilled_tokens / 1e6

    def add(self, num_prompt_tokens: int, num_cached_tokens: int) -> LiveSample:
        """A sample was handed to vLLM, and so many of its tokens should be in the cache."""
        if not self._live:
            self._step_began_at = self._clock()
        sample = LiveSample(num_prompt_tokens, num_prompt_tokens - num_cached_tokens)
        self._live[sample] = None
        return sample

    def first_token(self, sample: LiveSample) -> None:
        """All of the sample's prompt is computed."""
        sample.has_begun, sample.num_pending_tokens = True, 0

    def remove(self, sample: LiveSample) -> None:
        """The sample ended, in whatever way."""
        self._live.pop(sample, None)

    def step(self, stats: StepStats) -> None:
        """vLLM has done a step."""
        now = self._clock()
        seconds, self._step_began_at = now - self._step_began_at, now
        self._num_running, self._cache_usage = stats.num_running, stats.cache_usage
        num_tokens = stats.num_prefill_tokens + stats.num_decode_tokens
        if stats.num_prefill_tokens and self._was_busy(seconds):
            self._num_prefilled_tokens += stats.num_prefill_tokens
            self._prefill_busy_us += seconds * 1e6 * stats.num_prefill_tokens / num_tokens
            self._advance(stats.num_prefill_tokens)

    def stat(self) -> LoadStat:
        """The load now. `num_tokens` counts what running samples hold, `num_total_tokens` also what waits."""
        num_tokens = round(self._cache_usage * self._num_cache_tokens) if self._live else 0
        waiting = self._waiting()
        return LoadStat(
            num_running_reqs=len(self._live) - len(waiting),
            num_waiting_reqs=len(waiting),
            num_tokens=num_tokens,
            max_total_num_tokens=self._num_cache_tokens,
            dp_rank=self.dp_rank,
            num_waiting_uncached_tokens=self.num_pending_tokens,
            num_total_tokens=num_tokens + sum(sample.num_prompt_tokens for sample in waiting),
            max_running_requests=self._max_running,
            total_prefill_uncached_tokens=self._num_prefilled_tokens,
            total_prefill_busy_us=round(self._prefill_busy_us),
        )

    def _waiting(self) -> list[LiveSample]:
        # vLLM's number is of its last step: it lacks what has come since, and those that ended with it.
        waiting = [sample for sample in self._live if not sample.has_begun]
        num_begun = len(self._live) - len(waiting)
        return waiting[max(0, self._num_running - num_begun) :]

    def _was_busy(self, seconds: float) -> bool:
        """Whether the time is a step's: an aborted request's last step may end when none is left."""
        return bool(self._live) and seconds > 0

    def _advance(self, num_tokens: int) -> None:
        """vLLM computes prompts in the order in which they came, so these tokens are the first ones'."""
        for sample in self._live:
            done = min(num_tokens, sample.num_pending_tokens)
            sample.num_pending_tokens -= done
            num_tokens -= done
            if not num_tokens:
                return
