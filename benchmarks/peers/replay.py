"""A trace on `FifoRank`s, where another project's policy chooses: no kvbeacon in the choice.

The ranks, their caches and the figures are the simulator's own, so that the results can stand side by side.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.hashing import chain, wire_hashes
from app.routing.index.index_writer import IndexWriter
from app.routing.index.prefix_index import PrefixIndex
from app.routing.rank_sets import ranks_in
from app.simulation.config import ClusterConfig, FeedConfig
from app.simulation.ranks.fifo_rank import FifoRank
from app.simulation.ranks.rank import TOKENS_PER_BLOCK
from app.simulation.results.outcome import Outcome
from app.simulation.traces.request import SimulatedRequest


@dataclass(frozen=True)
class Arrival:
    """A request to be sent to a rank.

    Attributes:
        now: seconds.
        num_tokens: the prompt's.
        blocks: the prompt's blocks by hash; the last one may be partly filled.
        cached_blocks: of these, the leading ones that each rank needn't compute.
        block_size: tokens of a block.
    """

    now: float
    num_tokens: int
    blocks: Sequence[int]
    cached_blocks: Sequence[int]
    block_size: int

    def uncached_tokens(self, rank: int) -> int:
        """Tokens that `rank` would compute."""
        return self.num_tokens - self.cached_blocks[rank] * self.block_size


@dataclass
class RankState:
    """What a router can know of one rank besides its cache.

    Attributes:
        num_blocks: of its cache.
        num_cached_blocks: of these, those that hold something.
        requests: sent there and not computed yet: when each will be, its tokens to compute, its blocks.
        prefill_tokens: all of theirs.
        active_blocks: how many of them each block is part of.
    """

    num_blocks: int
    num_cached_blocks: int = 0
    requests: deque[tuple[float, int, Sequence[int]]] = field(default_factory=deque)
    prefill_tokens: int = 0
    active_blocks: Counter[int] = field(default_factory=Counter)

    def add(self, ends_s: float, uncached_tokens: int, blocks: Sequence[int]) -> None:
        """A request was sent there."""
        self.requests.append((ends_s, uncached_tokens, blocks))
        self.prefill_tokens += uncached_tokens
        self.active_blocks.update(blocks)

    def advance(self, now: float) -> None:
        """Drop the requests that are computed."""
        while self.requests and self.requests[0][0] <= now:
            _, uncached_tokens, blocks = self.requests.popleft()
            self.prefill_tokens -= uncached_tokens
            for block in blocks:
                self.active_blocks[block] -= 1
                if not self.active_blocks[block]:
                    del self.active_blocks[block]


class Peer(Protocol):
    """A policy of another project."""

    def choose(self, arrival: Arrival, ranks: Sequence[RankState]) -> int:
        """The rank for a request, which is sent there."""


def can_replay(config: ClusterConfig) -> bool:
    """Whether `config` is one router that knows everything at once, on ranks that don't decode."""
    return config.rank.decode is None and config.feed == FeedConfig() and config.routers == 1


def replay(
    config: ClusterConfig,
    requests: Iterable[SimulatedRequest],
    peer: Peer,
    on_request: Callable[[], object] = lambda: None,
) -> Outcome:
    """What becomes of `requests`, in the order of arrival, where `peer` chooses.

    The outcome has neither predictions nor reasons of misses.

    Raises:
        ConfigError: a request needs more blocks than a rank has.
    """
    started = time.perf_counter()
    replayed = _Replay(config, peer)
    for request in requests:
        replayed.send(request)
        on_request()
    replayed.outcome.wall_s = time.perf_counter() - started
    return replayed.outcome


class _Replay:
    def __init__(self, config: ClusterConfig, peer: Peer) -> None:
        self.outcome = Outcome(num_ranks=config.ranks)
        self._peer = peer
        self._block_size = config.rank.block_size
        self._index = PrefixIndex()
        self._writers = [IndexWriter(self._index, rank) for rank in range(config.ranks)]
        self._states = [RankState(config.rank.num_blocks) for _ in range(config.ranks)]
        record = self.outcome.record_first_token
        self._ranks = [FifoRank(rank, config.rank, record) for rank in range(config.ranks)]

    def send(self, request: SimulatedRequest) -> None:
        """Choose a rank, and let it take the request."""
        position, now = len(self.outcome.ranks), request.arrival_s
        digests = chain(request.block_ids, TOKENS_PER_BLOCK)
        for state in self._states:
            state.advance(now)
        arrival = self._arrival(request, wire_hashes(digests))
        started = time.perf_counter()
        rank = self._peer.choose(arrival, self._states)
        self.outcome.choose_s += time.perf_counter() - started
        self.outcome.add(request, rank)
        self._ranks[rank].arrive(position, request, digests, now)
        self._writers[rank].apply(self._ranks[rank].drain_events())
        ends_s = now + self.outcome.ttfts_s[position]
        self._states[rank].add(ends_s, arrival.uncached_tokens(rank), arrival.blocks)
        self._states[rank].num_cached_blocks = self._index.num_blocks_of(rank)

    def _arrival(self, request: SimulatedRequest, blocks: Sequence[int]) -> Arrival:
        cached_blocks = [0] * len(self._states)
        for depth, holders in self._index.match(blocks[: (request.num_tokens - 1) // self._block_size]):
            for rank in ranks_in(holders):
                cached_blocks[rank] = depth
        return Arrival(request.arrival_s, request.num_tokens, blocks, cached_blocks, self._block_size)
