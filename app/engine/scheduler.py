"""Which requests compute how many tokens in the next step.

Continuous batching, first come first served, under one token budget per step. Requests that run go on first,
oldest first; what remains of the budget admits waiting ones, long prompts in chunks. When blocks run out,
the latest arrived is preempted: it frees its blocks, waits at the front, and later recomputes prompt and
output so far, of which it finds in the cache what was not evicted.

Two facts follow and are relied on. Running requests are in order of arrival, and so are all running before
all waiting. And only the last running request can be in the middle of its prompt, since whoever is cut off
by the budget leaves nothing for others: so decoding ones, which come before it, are served first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from app.config import SchedulerConfig
from app.engine.prefix_cache import PrefixCache
from app.engine.request import Request


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A request and how many of its uncomputed tokens the step computes."""

    request: Request
    num_tokens: int

    @property
    def is_prefill(self) -> bool:
        """Whether these tokens are prompt work (of a preempted request also its earlier output)."""
        return self.request.num_pending_prefill_tokens > 0

    @property
    def is_sampled(self) -> bool:
        """Whether the step computes the last known token, whose logits give the next one."""
        return self.num_tokens == self.request.num_uncomputed_tokens


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step's work."""

    scheduled: tuple[ScheduledRequest, ...]
    sampled: tuple[Request, ...]  # those whose last known token is computed: each gets its next one
    num_prefill_tokens: int
    num_decode_tokens: int
    num_preempted: int


class Scheduler:
    """The waiting and the running requests, and the blocks they hold."""

    def __init__(self, config: SchedulerConfig, cache: PrefixCache) -> None:
        # More running requests than tokens in the budget would leave some without their one token.
        self.max_running_requests = min(config.max_running_requests, config.max_batch_tokens)
        self._max_batch_tokens = config.max_batch_tokens
        self._cache = cache
        self._waiting: OrderedDict[str, Request] = OrderedDict()
        self._running: OrderedDict[str, Request] = OrderedDict()

    @property
    def num_waiting(self) -> int:
        """Requests that hold no blocks yet, or none any more."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def num_waiting_tokens(self) -> int:
        """Known tokens of waiting requests."""
        return sum(request.num_tokens for request in self._waiting.values())

    @property
    def num_pending_prefill_tokens(self) -> int:
        """Prompt tokens to compute, of waiting requests and of those in the middle; cache hits excepted."""
        waiting = sum(
            request.num_tokens - self._num_hit_tokens(request) for request in self._waiting.values()
        )
        return waiting + sum(request.num_pending_prefill_tokens for request in self._running.values())

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._running or request_id in self._waiting

    def add(self, request: Request) -> None:
        """Let `request` wait behind all others."""
        request.table.extend_digests(request.token_ids, self._cache.block_size)
        self._waiting[request.request_id] = request

    def remove(self, request_id: str) -> bool:
        """Drop a request, finished or aborted, and free its blocks; False if there is none."""
        if request_id in self._waiting:
            del self._waiting[request_id]
            return True
        request = self._running.pop(request_id, None)
        if request is not None:
            self._cache.close(request.table)
        return request is not None

    def schedule(self) -> Schedule:
        """Choose the next step's work and give it blocks. Computes nothing."""
        scheduled, num_preempted = self._go_on()
        if num_preempted == 0:
            self._admit(scheduled)
        num_tokens = sum(item.num_tokens for item in scheduled)
        num_prefill = sum(item.num_tokens for item in scheduled if item.is_prefill)
        sampled = tuple(item.request for item in scheduled if item.is_sampled)
        return Schedule(tuple(scheduled), sampled, num_prefill, num_tokens - num_prefill, num_preempted)

    def complete(self, schedule: Schedule) -> None:
        """Record that `schedule` has been computed, and make the blocks that it filled findable."""
        for item in schedule.scheduled:
            request = item.request
            request.num_computed_tokens += item.num_tokens
            self._cache.commit(request.table, request.token_ids, request.num_computed_tokens)

    def check_integrity(self) -> None:
        """Raise AssertionError if a count or an order that others rely on is off."""
        self._cache.check_integrity(request.table for request in self._running.values())
        for request in self._waiting.values():
            assert not request.table.block_ids, f"{request.request_id} waits and holds blocks"
            assert request.num_computed_tokens == 0, f"{request.request_id} waits with computed tokens"
        for request in list(self._running.values())[:-1]:
            assert request.num_pending_prefill_tokens == 0, f"{request.request_id} is not the last to prefill"

    def _go_on(self) -> tuple[list[ScheduledRequest], int]:
        """Schedule the running requests, preempting the latest where blocks are short."""
        scheduled: list[ScheduledRequest] = []
        budget = self._max_batch_tokens
        num_preempted = 0
        for request in list(self._running.values()):
            if request.request_id not in self._running:
                break  # preempted for an earlier one, as are all after it
            num_tokens = min(budget, request.num_uncomputed_tokens)
            while not self._grow(request, num_tokens):
                num_preempted += 1
                if self._preempt_latest() is request:
                    return scheduled, num_preempted
            scheduled.append(ScheduledRequest(request, num_tokens))
            budget -= num_tokens
        return scheduled, num_preempted

    def _admit(self, scheduled: list[ScheduledRequest]) -> None:
        budget = self._max_batch_tokens - sum(item.num_tokens for item in scheduled)
        while self._waiting and budget > 0 and self.num_running < self.max_running_requests:
            request = next(iter(self._waiting.values()))
            if not self._start(request):
                break
            num_tokens = min(budget, request.num_uncomputed_tokens)
            grown = self._grow(request, num_tokens)
            assert grown, "a request was started without room for it"
            scheduled.append(ScheduledRequest(request, num_tokens))
            budget -= num_tokens

    def _start(self, request: Request) -> bool:
        """Move a waiting request to the running ones with its cached prefix, if all of it has room.

        One more block per running request must be free, or the next tokens of those would preempt it.
        """
        num_hit_tokens = self._num_hit_tokens(request)
        num_hits = num_hit_tokens // self._cache.block_size
        needed = self._num_blocks_for(request.num_tokens) + self.num_running
        if not self._cache.fits(request.table.digests[:num_hits], needed):
            return False
        self._cache.open(request.table, num_hits)
        request.num_computed_tokens = num_hit_tokens
        request.num_prefill_tokens = request.num_tokens
        if request.num_cached_tokens is None:
            request.num_cached_tokens = num_hit_tokens
        self._running[request.request_id] = self._waiting.pop(request.request_id)
        return True

    def _preempt_latest(self) -> Request:
        _, request = self._running.popitem()
        self._cache.close(request.table)
        request.num_computed_tokens = 0
        self._waiting[request.request_id] = request
        self._waiting.move_to_end(request.request_id, last=False)
        return request

    def _grow(self, request: Request, num_tokens: int) -> bool:
        return self._cache.grow(request.table, self._num_blocks_for(request.num_computed_tokens + num_tokens))

    def _num_hit_tokens(self, request: Request) -> int:
        """Cached leading tokens in full blocks; the last token is always computed, for its logits."""
        usable = (request.num_tokens - 1) // self._cache.block_size
        return self._cache.match(request.table.digests[:usable]) * self._cache.block_size

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._cache.block_size)
