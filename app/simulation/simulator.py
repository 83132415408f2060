"""Runs a trace through real routing cores, on ranks that exist as arithmetic only."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from app.hashing import chain, wire_hashes
from app.routing.decisions.decision import Prompt
from app.routing.decisions.decision_log import Outcome as Arrival
from app.routing.misses.miss_book import MissBook
from app.simulation.clock import Clock
from app.simulation.config import ClusterConfig
from app.simulation.feed import Feed
from app.simulation.ranks.batching_rank import BatchingRank
from app.simulation.ranks.fifo_rank import FifoRank
from app.simulation.ranks.rank import TOKENS_PER_BLOCK, OnFirstToken, Rank
from app.simulation.results.outcome import Outcome
from app.simulation.routers import Routers
from app.simulation.traces.request import SimulatedRequest

REMEMBERED_BLOCKS = 2**20
"""Of prompts and of what ranks evicted, for the reasons of misses."""


def simulate(
    config: ClusterConfig,
    requests: Iterable[SimulatedRequest],
    policy: str,
    on_request: Callable[[], object] = lambda: None,
) -> Outcome:
    """What becomes of `requests` under `policy`: the same every time, but for the times in `Outcome.wall_s`.

    Args:
        config: the ranks, and what the router learns of them.
        requests: in the order of arrival.
        policy: the policy's name.
        on_request: called after each request has been sent to its rank.

    Raises:
        ConfigError: a request needs more blocks than a rank has, or there is no such policy.
    """
    started = time.perf_counter()
    simulator = _Simulator(config, policy)
    for request in requests:
        simulator.send(request)
        on_request()
    simulator.finish()
    simulator.outcome.wall_s = time.perf_counter() - started
    return simulator.outcome


class _Simulator:
    def __init__(self, config: ClusterConfig, policy: str) -> None:
        self.outcome = Outcome(num_ranks=config.ranks)
        self._block_size = config.rank.block_size
        self._clock = Clock()
        self._ranks = _new_ranks(config, self._record_first_token)
        self._routers = Routers(config, policy, self._clock)
        self._misses = MissBook(self._routers.index, REMEMBERED_BLOCKS, 1, lambda: self._clock.now)
        self.outcome.missed_tokens = self._misses.tally.tokens
        self._feed = Feed(config.feed, self._clock, self._ranks, self._routers, config.seed)
        self._wakes = array("d", [float("inf")] * config.ranks)
        """The next moment at which each rank is to be woken."""

    def send(self, request: SimulatedRequest) -> None:
        """Let time go on to the request's arrival, and choose its rank."""
        self._clock.run_until(request.arrival_s)
        self._feed.refresh()
        position = len(self.outcome.ranks)
        digests = chain(request.block_ids, TOKENS_PER_BLOCK)
        prompt = Prompt(
            str(position), wire_hashes(digests), request.num_tokens, self._block_size, request.session_id
        )
        started = time.perf_counter()
        decision = self._routers.choose(prompt)
        self.outcome.choose_s += time.perf_counter() - started
        self._misses.find(prompt, decision)
        self.outcome.add(request, decision.rank, decision.predicted_ttft_s)
        self._ranks[decision.rank].arrive(position, request, digests, self._clock.now)
        self._feed.record_arrival(decision.rank, prompt.request_id)
        self._follow(decision.rank)

    def finish(self) -> None:
        """Let time go on until everything is done."""
        self._clock.run()

    def _record_first_token(self, position: int, moment: float, cached_tokens: int) -> None:
        self.outcome.record_first_token(position, moment, cached_tokens)
        arrival = Arrival(
            str(position), self.outcome.ranks[position], "answering", cached_tokens=cached_tokens
        )
        self._misses.record_outcome(arrival)
        self._misses.note((arrival.request_id, arrival.choice_seq), None, None)

    def _follow(self, rank: int) -> None:
        """Send what the rank's cache has to say, and come back when something changes."""
        self._feed.publish(rank)
        moment = self._ranks[rank].next_change
        if moment < self._wakes[rank]:
            self._wakes[rank] = moment
            self._clock.schedule(moment, partial(self._wake, rank, moment))

    def _wake(self, rank: int, moment: float) -> None:
        if self._wakes[rank] == moment:  # else it was woken earlier, and has another time
            self._wakes[rank] = float("inf")
            self._ranks[rank].advance(moment)
            self._follow(rank)


def _new_ranks(config: ClusterConfig, on_first_token: OnFirstToken) -> Sequence[Rank]:
    decode = config.rank.decode
    if decode is None:
        return [FifoRank(number, config.rank, on_first_token) for number in range(config.ranks)]
    return [BatchingRank(number, config.rank, decode, on_first_token) for number in range(config.ranks)]
