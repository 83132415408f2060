"""Which requests compute how many tokens in the next step.

Continuous batching under one token budget per step. Requests have an order: lower priority first, then
earlier arrival. A step shares its budget out like this:

1. Every running request that has its prompt behind it gets its one token. When blocks run out, the last in
   order is preempted: it frees its blocks, waits in its old place, and later recomputes prompt and output so
   far, of which it finds in the cache what was not evicted.
2. Half of what remains is kept for the first in order that has prompt left to compute.
3. The rest goes, within each priority, to those with the fewest prompt tokens left.

A waiting request is admitted when the step has tokens for it, and there is a slot and room for all of its
tokens so far. Its blocks are taken at once, so only output can run short of them. It may be admitted ahead of
the first of the waiting only if that one has the same priority and was overtaken fewer than
`max_running_requests` times.

So, within a priority, a short prompt doesn't wait until a long one is computed; and a long one, once it is
the first, gets half of all that decoding leaves, however many short ones come. Every request ends in a
bounded number of steps once no more are added ahead of it, by two facts. The first in order of the running
gets on in every step: the last is preempted, a lone one can have all blocks, and the budget has a token for
each that runs. And the first in order of the waiting is overtaken a bounded number of times; then none is
admitted before it, and when none runs any more it has room.

No request computes a block that another one computes in the same step: it waits for that step, and finds the
block in the cache at the next. This is how the samples of one prompt come to share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.engine.cache.prefix_cache import PrefixCache
from app.engine.torch.request import Request, Status
from app.engine.torch.request_queue import RequestQueue
from app.engine.torch.schedule import Plan, Schedule, ScheduledRequest
from app.settings.engine import SchedulerConfig


class Scheduler:
    """The waiting and the running requests, and the blocks they hold."""

    def __init__(self, config: SchedulerConfig, cache: PrefixCache) -> None:
        # More running requests than tokens in the budget would leave some without their one token.
        self.max_running_requests = min(config.max_running_requests, config.max_batch_tokens)
        self._max_batch_tokens = config.max_batch_tokens
        self._cache = cache
        self._waiting = RequestQueue()
        self._running = RequestQueue()
        self._num_arrived = 0

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
        return sum(request.num_tokens for request in self._waiting)

    @property
    def num_pending_prefill_tokens(self) -> int:
        """Prompt tokens to compute, of waiting requests and of those in the middle; cache hits excepted.

        Of a prompt with several samples, the full blocks count once.
        """
        waiting = sum(
            request.num_tokens
            - (self._usable(request) if request.shares_prompt else self._num_hit_tokens(request))
            for request in self._waiting
        )
        return waiting + sum(request.num_pending_prefill_tokens for request in self._running)

    def add(self, samples: Sequence[Request]) -> None:
        """Let the samples of one prompt wait behind all others of their priority."""
        first, block_size = samples[0], self._cache.block_size
        first.table.extend_digests(first.token_ids[: first.num_prompt_tokens], block_size)
        digests = list(first.table.digests)
        for request in samples:
            request.table.digests = list(digests)
            request.table.extend_digests(request.token_ids, block_size)  # of output that it has already
            request.is_first = request is first
            request.status = Status.WAITING
            request.arrival = self._num_arrived
            self._num_arrived += 1
            self._waiting.add(request)

    def remove(self, request: Request) -> None:
        """Drop a live request, finished or aborted, and free its blocks."""
        if request.status is Status.RUNNING:
            self._running.remove(request)
            self._cache.close(request.table)
        else:
            self._waiting.remove(request)
        request.status = Status.ENDED

    def schedule(self) -> Schedule:
        """Choose the next step's work and give it blocks. Computes nothing."""
        plan = Plan(self._max_batch_tokens)
        has_preempted = self._plan_decoding(plan)
        self._plan_prompts(plan, may_admit=not has_preempted)
        scheduled = tuple(ScheduledRequest(*item) for item in plan.num_tokens.items())
        num_tokens = self._max_batch_tokens - plan.budget
        num_prefill = sum(
            item.num_tokens for item in scheduled if item.is_prefill and item.request.num_tokens > 1
        )
        sampled = tuple(item.request for item in scheduled if item.is_sampled)
        return Schedule(scheduled, sampled, num_prefill, num_tokens - num_prefill)

    def complete(self, schedule: Schedule) -> None:
        """Record that `schedule` has been computed, and make the blocks that it filled findable."""
        for item in schedule.scheduled:
            request = item.request
            request.num_computed_tokens += item.num_tokens
            self._cache.commit(request.table, request.token_ids, request.num_computed_tokens)

    def check_integrity(self) -> None:
        """Raise AssertionError if a count or an order that others rely on is off."""
        self._cache.check_integrity(request.table for request in self._running)
        assert self.num_running <= self.max_running_requests, "more run than may"
        for queue in (self._running, self._waiting):
            orders = [request.order for request in queue]
            assert orders == sorted(set(orders)), "a queue is out of order"
        for request in self._waiting:
            assert request.status is Status.WAITING, f"{request.request_id} waits and is {request.status}"
            assert not request.table.block_ids, f"{request.request_id} waits and holds blocks"
            assert request.num_computed_tokens == 0, f"{request.request_id} waits with computed tokens"
            num_full = request.num_tokens // self._cache.block_size
            assert len(request.table.digests) == num_full, f"{request.request_id} could not be found in full"
            assert request.num_overtaken <= self.max_running_requests, f"{request.request_id} is passed over"
        for request in self._running:
            assert request.status is Status.RUNNING, f"{request.request_id} runs and is {request.status}"
            in_cache = max(request.num_prefill_tokens, request.num_computed_tokens)
            num_blocks = self._num_blocks_for(in_cache)
            assert len(request.table.block_ids) == num_blocks, f"{request.request_id} lacks or hoards blocks"
            assert request.num_computed_tokens < request.num_tokens, f"{request.request_id} has nothing to do"

    def _plan_decoding(self, plan: Plan) -> bool:
        """Give those that generate their next token; whether the last were preempted for want of blocks."""
        has_preempted = False
        for request in list(self._running):
            if request.num_pending_prefill_tokens > 0:
                continue  # in its prompt, for which it has blocks; or preempted for an earlier one
            while not self._cache.grow(request.table, self._num_blocks_for(request.num_tokens)):
                has_preempted = True
                if self._preempt_last() is request:
                    return has_preempted
            plan.add(request, 1)
        return has_preempted

    def _plan_prompts(self, plan: Plan, *, may_admit: bool) -> None:
        """Share out what decoding leaves: half to the first in order, the rest to the shortest."""
        in_prompt = [request for request in self._running if request.num_pending_prefill_tokens > 0]
        for request in in_prompt:
            self._go_over_to_cached(request)
        waiting = list(self._waiting) if may_admit and self.num_running < self.max_running_requests else []
        half = (plan.budget + 1) // 2
        for request in sorted([*in_prompt[:1], *waiting[:1]], key=lambda request: request.order):
            if plan.budget > 0 and self._plan_prompt(request, plan, half):
                break
        for request in self._shortest_first(plan, in_prompt, waiting) if plan.budget > 0 else ():
            if plan.budget == 0:
                break
            self._plan_prompt(request, plan, plan.budget)

    def _shortest_first(
        self, plan: Plan, in_prompt: Iterable[Request], waiting: Iterable[Request]
    ) -> list[Request]:
        """By priority, then by prompt tokens left; without those that surely lack room."""
        num_left = {request: plan.num_left(request) for request in in_prompt}
        room = (self._cache.num_free_blocks - self.num_running) * self._cache.block_size
        for request in waiting:
            if request.status is Status.RUNNING:  # admitted as the first
                num_left[request] = plan.num_left(request)
                continue
            num_uncached = request.num_tokens - self._num_hit_tokens(request)
            if num_uncached <= room:
                num_left[request] = num_uncached
        shortest_first = sorted(num_left, key=num_left.__getitem__)
        return sorted(shortest_first, key=lambda request: request.priority)

    def _plan_prompt(self, request: Request, plan: Plan, limit: int) -> bool:
        """Compute up to `limit` more tokens of a prompt; False where the request must wait."""
        if request not in plan.num_tokens and self._is_being_computed(request, plan):
            return False
        if request.status is not Status.RUNNING and not self._admit(request):
            return False
        num_tokens = min(limit, plan.num_left(request))
        if num_tokens > 0:
            plan.add(request, num_tokens)
            if self._cache.is_findable(request.table):
                start = request.num_computed_tokens
                stop = self._num_blocks_for(start + plan.num_tokens[request])
                plan.digests.update(request.table.digests[start // self._cache.block_size : stop])
        return True

    def _is_being_computed(self, request: Request, plan: Plan) -> bool:
        """Whether the step already computes the next block of which `request` needs no token's logits."""
        is_running = request.status is Status.RUNNING
        start = request.num_computed_tokens if is_running else self._num_hit_tokens(request)
        digests = request.table.digests
        return start < self._usable(request) and digests[start // self._cache.block_size] in plan.digests

    def _admit(self, request: Request) -> bool:
        """Move a waiting request to the running ones with its cached prefix, if it may be and has room.

        One more block per running request must be free, or the next tokens of those would preempt it.
        """
        first = self._waiting.first
        overtakes = request is not first
        if overtakes and not self._may_be_overtaken(first, request):
            return False
        num_hit_tokens = self._num_hit_tokens(request)
        num_hits = num_hit_tokens // self._cache.block_size
        num_blocks = self._num_blocks_for(request.num_tokens)
        if self.num_running == self.max_running_requests or not self._cache.fits(
            request.table, num_hits, num_blocks + self.num_running
        ):
            return False
        self._cache.open(request.table, num_hits)
        grown = self._cache.grow(request.table, num_blocks)
        assert grown, "a request was admitted without room for it"
        request.num_computed_tokens = num_hit_tokens
        request.num_prefill_tokens = request.num_tokens
        if request.usage.num_cached_tokens is None:
            # Of a request that another rank began, hits may reach into its output.
            request.usage.num_cached_tokens = min(num_hit_tokens, request.num_prompt_tokens)
        first.num_overtaken += overtakes
        self._waiting.remove(request)
        self._running.add(request)
        request.status = Status.RUNNING
        return True

    def _may_be_overtaken(self, first: Request, request: Request) -> bool:
        return request.priority == first.priority and first.num_overtaken < self.max_running_requests

    def _preempt_last(self) -> Request:
        request = self._running.last
        self._running.remove(request)
        self._cache.close(request.table)
        request.num_computed_tokens = 0
        # Those of its output too, which it had no use for if the cache was reset.
        request.table.extend_digests(request.token_ids, self._cache.block_size)
        self._waiting.add(request)
        request.status = Status.WAITING
        return request

    def _go_over_to_cached(self, request: Request) -> None:
        """Leave out blocks that others have computed since this one was admitted or computed its last."""
        if self._cache.is_findable(request.table):
            num_hit_tokens = self._num_hit_tokens(request)
            if num_hit_tokens > request.num_computed_tokens:
                self._cache.commit(request.table, request.token_ids, num_hit_tokens)
                request.num_computed_tokens = num_hit_tokens

    def _num_hit_tokens(self, request: Request) -> int:
        """Cached leading tokens in full blocks."""
        block_size = self._cache.block_size
        return self._cache.count_hits(request.table, self._usable(request) // block_size) * block_size

    def _usable(self, request: Request) -> int:
        """Tokens in full blocks that a hit can spare; those whose logits are needed are always computed."""
        block_size = self._cache.block_size
        return request.num_hidden_tokens // block_size * block_size

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._cache.block_size)
