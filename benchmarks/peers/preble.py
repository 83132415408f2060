"""Preble's E2: exploit the longest cached prefix, or explore for the least cost.

Where more of a prompt is cached than isn't, it goes to a rank with the longest cached prefix, of several to
the one with the least load (exploitation). Else it goes where the cost is least (exploration):

    cost = L + M + P    seconds
    L    = what the rank was given to compute in the last 3 minutes
    M    = for what it would evict, least recently used first: the time to compute it, times the share of the
           requests of the last 3 minutes that use it
    P    = the time to compute what isn't cached of this prompt

Here blocks take the place of the radix tree's nodes. Not included are the shifting of load from the most to
the least loaded GPU, the copying of prefixes whose requests wait ever longer, and each GPU's own order of
waiting requests.

Source: V. Srivatsa, Z. He, R. Abhyankar, D. Li, Y. Zhang, "Preble: Efficient Distributed Prompt Scheduling
for LLM Serving", 2024, and `WukLab/preble`, `multi_node/global_scheduler_with_time.py` (the window, virtual
eviction, and exploitation where a prompt's own part is the smaller one).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from benchmarks.peers.replay import Arrival, RankState

WINDOW_S: Final = 180.0


class Preble:
    """See the module. Implements `Peer`.

    Args:
        num_ranks: ranks, all equally fast: so tokens to compute stand for seconds.
    """

    def __init__(self, num_ranks: int) -> None:
        self._load_tokens = [0] * num_ranks
        self._past: deque[tuple[float, int, int, Sequence[int]]] = deque()
        """Of each request in the window: when, where to, tokens to compute, blocks."""
        self._users = Counter[int]()
        """Requests in the window that have each block."""
        self._caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(num_ranks)]
        """The blocks of each rank, the next to be evicted first."""

    def choose(self, arrival: Arrival, ranks: Sequence[RankState]) -> int:
        """The rank to exploit, or the one with the least cost."""
        self._forget(arrival.now - WINDOW_S)
        longest = max(arrival.cached_blocks)
        if longest * arrival.block_size > arrival.num_tokens / 2:
            holders = [rank for rank, cached in enumerate(arrival.cached_blocks) if cached == longest]
            best = min(holders, key=lambda rank: self._load_tokens[rank])
        else:
            costs = [self._cost_tokens(arrival, rank, state) for rank, state in enumerate(ranks)]
            best = costs.index(min(costs))
        self._remember(arrival, best, ranks[best].num_blocks)
        return best

    def _cost_tokens(self, arrival: Arrival, rank: int, state: RankState) -> float:
        """The cost as the tokens that are computed in that time."""
        cache, kept = self._caches[rank], arrival.blocks[: arrival.cached_blocks[rank]]
        missing = len(arrival.blocks) - len(kept) - (state.num_blocks - len(cache))
        own = set(kept)
        victims = islice((block for block in cache if block not in own), max(0, missing))
        users = sum(self._users[block] for block in victims)
        evicted_tokens = users / max(1, len(self._past)) * arrival.block_size
        return self._load_tokens[rank] + evicted_tokens + arrival.uncached_tokens(rank)

    def _remember(self, arrival: Arrival, rank: int, num_blocks: int) -> None:
        uncached_tokens = arrival.uncached_tokens(rank)
        self._past.append((arrival.now, rank, uncached_tokens, arrival.blocks))
        self._load_tokens[rank] += uncached_tokens
        self._users.update(arrival.blocks)
        cache = self._caches[rank]
        for block in reversed(arrival.blocks):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > num_blocks:
            cache.popitem(last=False)

    def _forget(self, before_s: float) -> None:
        while self._past and self._past[0][0] < before_s:
            _, rank, uncached_tokens, blocks = self._past.popleft()
            self._load_tokens[rank] -= uncached_tokens
            self._users.subtract(blocks)
            for block in blocks:
                if not self._users[block]:
                    del self._users[block]
