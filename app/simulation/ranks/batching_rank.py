"""A rank that batches: prompts are computed in chunks, in the steps in which others decode.

Between two changes (a prompt is through, an answer is, a request arrives) all steps are alike, so time moves
from change to change and not from step to step: `n` steps take `n * step_s`, whole or not.

    steps     0            120.5            300
              |-- prefill A --|-- A decodes --|        A's answer ends at step 120.5 + output tokens - 1
                                |- prefill B -|- …     while B is computed, each step takes longer

A request is admitted in order of arrival, when blocks for its prompt and its whole answer are to be had: so
none is ever preempted, and one that doesn't fit yet waits for others to end.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.cache.prefix_cache import BlockTable
from app.events.schema import CacheEvent, LoadStat
from app.simulation.config import DecodeConfig, RankConfig
from app.simulation.ranks.rank import OnFirstToken, check_fits, new_cache, new_table, num_reusable_blocks
from app.simulation.traces.request import SimulatedRequest

EPSILON = 1e-7
"""Tokens or steps that are rounding's alone."""


@dataclass(slots=True, eq=False)
class _Sequence:
    position: int
    request: SimulatedRequest
    table: BlockTable
    num_blocks: int
    """Blocks of prompt and answer."""
    uncached_tokens: int
    cached_tokens: int = 0


class BatchingRank:
    """See the module. Implements `Rank`.

    Args:
        number: the rank's number.
        config: its rate and cache.
        decode: its steps.
        on_first_token: called for each request when its prompt is through.
    """

    def __init__(
        self, number: int, config: RankConfig, decode: DecodeConfig, on_first_token: OnFirstToken
    ) -> None:
        self._number = number
        self._config = config
        self._decode = decode
        self._on_first_token = on_first_token
        self._cache = new_cache(config)
        self._now = 0.0
        self._waiting: deque[_Sequence] = deque()
        self._computing: _Sequence | None = None
        self._tokens_left = 0.0
        """Prompt tokens of `_computing`."""
        self._running: list[tuple[float, int, _Sequence]] = []
        """A heap: the step at whose end the answer is complete, position, sequence."""
        self._steps = 0.0
        self._waiting_tokens = 0
        self._prefilled_tokens = 0.0
        self._busy_s = 0.0
        self._next_change = math.inf

    @property
    def next_change(self) -> float:
        """When a prompt or an answer will be through."""
        return self._next_change

    @property
    def is_idle(self) -> bool:
        """Whether no request is here."""
        return not (self._waiting or self._computing or self._running)

    def arrive(self, position: int, request: SimulatedRequest, digests: Sequence[bytes], now: float) -> None:
        """Queue a request, and begin with it if nothing else is to be computed."""
        self.advance(now)
        num_blocks = -(-(request.num_tokens + request.output_tokens - 1) // self._config.block_size)
        check_fits(num_blocks, position, self._config)
        table = new_table(digests)
        sequence = _Sequence(position, request, table, num_blocks, self._uncached_tokens(request, table))
        self._waiting.append(sequence)
        self._waiting_tokens += sequence.uncached_tokens
        self._begin_next()

    def advance(self, now: float) -> None:
        """Compute up to `now`."""
        while self._next_change <= now:
            self._move_to(self._next_change)
            self._end_answers()
            self._end_prompt()
            self._begin_next()
        self._move_to(now)

    def load(self, now: float) -> LoadStat:
        """The load at `now`, as `Engine.load_stat` counts it."""
        self.advance(now)
        block_size = self._config.block_size
        held_tokens = (self._config.num_blocks - self._cache.num_free_blocks) * block_size
        return LoadStat(
            num_running_reqs=self._num_running,
            num_waiting_reqs=len(self._waiting),
            num_tokens=held_tokens,
            max_total_num_tokens=self._config.num_blocks * block_size,
            dp_rank=self._number,
            num_waiting_uncached_tokens=self._waiting_tokens + math.ceil(self._tokens_left),
            num_total_tokens=held_tokens + sum(each.request.num_tokens for each in self._waiting),
            max_running_requests=self._decode.max_running_requests,
            total_prefill_uncached_tokens=round(self._prefilled_tokens),
            total_prefill_busy_us=round(self._busy_s * 1e6),
        )

    def drain_events(self) -> list[CacheEvent]:
        """What has changed in the cache since the last call."""
        return self._cache.drain_events()

    @property
    def _num_running(self) -> int:
        return len(self._running) + (self._computing is not None)

    @property
    def _step_s(self) -> float:
        step_s = self._decode.fixed_s + self._decode.per_request_s * len(self._running)
        if self._computing is not None:
            step_s += self._decode.chunk_tokens / self._config.prefill_tokens_per_s
        return step_s

    def _move_to(self, now: float) -> None:
        seconds = now - self._now
        self._now = now
        if self.is_idle or seconds <= 0:
            return
        steps = seconds / self._step_s
        self._steps += steps
        if self._computing is not None:
            tokens = min(self._tokens_left, steps * self._decode.chunk_tokens)
            self._tokens_left -= tokens
            self._prefilled_tokens += tokens
            # As the engine counts it: a step's time by its tokens.
            chunk = self._decode.chunk_tokens
            self._busy_s += seconds * chunk / (chunk + len(self._running))

    def _end_answers(self) -> None:
        while self._running and self._running[0][0] <= self._steps + EPSILON:
            _, _, sequence = heapq.heappop(self._running)
            self._cache.close(sequence.table)

    def _end_prompt(self) -> None:
        sequence = self._computing
        if sequence is None or self._tokens_left > EPSILON:
            return
        self._computing, self._tokens_left = None, 0.0
        self._cache.commit(sequence.table, sequence.request.block_ids, len(sequence.request.block_ids))
        self._on_first_token(sequence.position, self._now, sequence.cached_tokens)
        last_step = self._steps + sequence.request.output_tokens - 1
        if last_step > self._steps:
            heapq.heappush(self._running, (last_step, sequence.position, sequence))
        else:
            self._cache.close(sequence.table)

    def _begin_next(self) -> None:
        if self._computing is None and self._waiting and self._admit(self._waiting[0]):
            sequence = self._waiting.popleft()
            self._waiting_tokens -= sequence.uncached_tokens
            self._computing = sequence
            self._tokens_left = float(sequence.request.num_tokens - sequence.cached_tokens)
        self._next_change = self._find_next_change()

    def _admit(self, sequence: _Sequence) -> bool:
        """Take blocks for all of `sequence`; False where there are too few."""
        table = sequence.table
        num_hits = self._num_hits(sequence.request, table)
        if self._num_running >= self._decode.max_running_requests:
            return False
        if not self._cache.fits(table, num_hits, sequence.num_blocks):
            return False
        self._cache.open(table, num_hits)
        self._cache.grow(table, sequence.num_blocks)
        sequence.cached_tokens = num_hits * self._config.block_size
        return True

    def _find_next_change(self) -> float:
        steps = math.inf
        if self._computing is not None:
            steps = self._tokens_left / self._decode.chunk_tokens
        if self._running:
            steps = min(steps, max(0.0, self._running[0][0] - self._steps))
        return self._now + steps * self._step_s if steps < math.inf else math.inf

    def _num_hits(self, request: SimulatedRequest, table: BlockTable) -> int:
        return self._cache.count_hits(table, num_reusable_blocks(request, self._config))

    def _uncached_tokens(self, request: SimulatedRequest, table: BlockTable) -> int:
        return request.num_tokens - self._num_hits(request, table) * self._config.block_size
