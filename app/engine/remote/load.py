"""How busy a worker's rank is: by its own reports, by our own requests, or by both.

A report counts every client's requests, but not those that we sent since. They are added until a later report
surely has them. Where there are no reports, our own requests are all that is known.

The prefill rate is the worker's own where it reports one. Otherwise the time in which at least one of our
requests waited for its first token is what the prompts of those that got theirs took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from app.events.schema import LoadStat

REPORTED_AFTER_S = 0.25
"""A request this old is in a report that arrives now, which may have been sent before it came."""
STALE_S = 5.0
"""A report this old says nothing any more."""


@dataclass(eq=False, slots=True)
class OwnRequest:
    """One request that we sent, as its rank's load counts it.

    Attributes:
        num_prompt_tokens, num_uncached_tokens: of its prompt; the second is a guess until the first token.
        num_samples: requests that it counts as.
        sent_at: monotonic seconds.
        is_reported: the worker's last report has it.
        has_token: its first token has come.
    """

    request_id: str
    num_prompt_tokens: int
    num_uncached_tokens: int
    num_samples: int
    sent_at: float
    is_reported: bool = False
    has_token: bool = False


class RemoteLoad:
    """The load of our rank `dp_rank`.

    Args:
        dp_rank: our number of it; it may be changed.
        clock: monotonic seconds.
    """

    def __init__(self, dp_rank: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.dp_rank = dp_rank
        self._clock = clock
        self._requests: dict[OwnRequest, None] = {}
        self._report: LoadStat | None = None
        self._reported_at = 0.0
        self._capacity_tokens = 0
        self._num_prefilled_tokens = 0
        self._prefill_busy_us = 0.0
        self._worker_rate: Literal["unknown", "reported"] = "unknown"
        self._waiting_since: float | None = None
        """Since when at least one request waits for its first token."""

    @property
    def num_requests(self) -> int:
        """Our own that haven't ended."""
        return len(self._requests)

    def stat(self) -> LoadStat:
        """The load now, all of our own requests counted."""
        now = self._clock()
        report = self._report if now - self._reported_at < STALE_S else None
        added = [each for each in self._requests if report is None or not each.is_reported]
        running = [each for each in added if each.has_token]
        waiting = [each for each in added if not each.has_token]
        base = report or _NOTHING
        if not base.num_waiting_uncached_tokens and base.num_waiting_reqs:
            # It says how many wait, and not for how much: of ours that is known.
            waiting_for = [each for each in self._requests if not each.has_token]
        else:
            waiting_for = waiting
        uncached = sum(each.num_uncached_tokens for each in waiting_for)
        return msgspec.structs.replace(
            base,
            num_running_reqs=base.num_running_reqs + _samples(running),
            num_waiting_reqs=base.num_waiting_reqs + _samples(waiting),
            num_tokens=base.num_tokens + _prompt_tokens(running),
            max_total_num_tokens=base.max_total_num_tokens or self._capacity_tokens,
            dp_rank=self.dp_rank,
            num_waiting_uncached_tokens=base.num_waiting_uncached_tokens + uncached,
            num_total_tokens=base.num_total_tokens + _prompt_tokens(added),
            total_prefill_uncached_tokens=self._num_prefilled_tokens,
            total_prefill_busy_us=round(self._prefill_busy_us),
        )

    def set_capacity(self, num_tokens: int) -> None:
        """The worker's cache holds so many tokens; 0: it doesn't say."""
        self._capacity_tokens = num_tokens

    def report(self, stat: LoadStat) -> None:
        """Take the worker's own report, which has just come."""
        now = self._clock()
        before, self._report, self._reported_at = self._report, stat, now
        for request in self._requests:
            request.is_reported = request.is_reported or now - request.sent_at >= REPORTED_AFTER_S
        if stat.total_prefill_busy_us:
            self._take_rate(before, stat)

    def acknowledge(self, request_ids: Iterable[str]) -> None:
        """The worker's last report counts these requests."""
        known = frozenset(request_ids)
        for request in self._requests:
            request.is_reported = request.is_reported or request.request_id in known

    def forget_reports(self) -> None:
        """The worker is down, or another one: what it reported is over."""
        self._report = None
        for request in self._requests:
            request.is_reported = False

    def add(self, request_id: str, num_prompt_tokens: int, num_uncached_tokens: int, n: int) -> OwnRequest:
        """A request is sent now."""
        now = self._clock()
        request = OwnRequest(request_id, num_prompt_tokens, num_uncached_tokens, n, now)
        self._requests[request] = None
        if self._waiting_since is None:
            self._waiting_since = now
        return request

    def first_token(self, request: OwnRequest, num_cached_tokens: int) -> None:
        """The request's first token has come, and with it how much of its prompt was cached."""
        if request.has_token or request not in self._requests:
            return
        request.has_token = True
        request.num_uncached_tokens = max(0, request.num_prompt_tokens - num_cached_tokens)
        self._close_wait(request.num_uncached_tokens)

    def remove(self, request: OwnRequest) -> None:
        """The request has ended, however it did; a second call does nothing."""
        if self._requests.pop(request, False) is None and not request.has_token:
            self._close_wait(0)

    def _close_wait(self, num_tokens: int) -> None:
        """One request less waits for its first token; `num_tokens` were computed for it."""
        now = self._clock()
        if self._worker_rate == "unknown" and self._waiting_since is not None and num_tokens:
            self._prefill_busy_us += (now - self._waiting_since) * 1e6
            self._num_prefilled_tokens += num_tokens
        is_waiting = any(not each.has_token for each in self._requests)
        if num_tokens or not is_waiting:
            self._waiting_since = now if is_waiting else None

    def _take_rate(self, before: LoadStat | None, stat: LoadStat) -> None:
        """Add what the worker has computed since its last report, which may have been another process's."""
        self._worker_rate = "reported"
        if before is None:
            return
        tokens = stat.total_prefill_uncached_tokens - before.total_prefill_uncached_tokens
        busy_us = stat.total_prefill_busy_us - before.total_prefill_busy_us
        if tokens >= 0 and busy_us >= 0:
            self._num_prefilled_tokens += tokens
            self._prefill_busy_us += busy_us


def _samples(requests: Iterable[OwnRequest]) -> int:
    return sum(each.num_samples for each in requests)


def _prompt_tokens(requests: Iterable[OwnRequest]) -> int:
    return sum(each.num_prompt_tokens for each in requests)


_NOTHING = LoadStat(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
