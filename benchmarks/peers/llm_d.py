"""llm-d's scorers: the highest weighted sum of scores between 0 and 1; ties at random.

    prefix-cache-scorer           cached blocks of the prompt / its blocks
    kv-cache-utilization-scorer   1 - share of the cache that running requests hold
    queue-scorer                  (longest queue - own queue) / (longest - shortest); 1 where all are equal
    load-aware-scorer             0.5 * (1 - min(own queue, 128) / 128)

A queue is the requests that wait; here one of a rank's requests runs, the others wait.

Source: `kubernetes-sigs/gateway-api-inference-extension`, the scorers under `pkg/epp`, and
`llm-d/llm-d-inference-scheduler`, `pkg/plugins/scorer/load_aware.go` and `docs/architecture.md`. Weights:
`DEFAULT` is what llm-d's guide to precise prefix-cache aware routing and its default profile give the three
scorers, `LOAD_AWARE` what the sample configuration of the load-aware scorer has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from benchmarks.peers.replay import Arrival, RankState

Scorer = Callable[[Arrival, Sequence[RankState]], list[float]]
QUEUE_THRESHOLD: Final = 128


def prefix_cache_scores(arrival: Arrival, ranks: Sequence[RankState]) -> list[float]:
    """A score for each rank, as all scorers below."""
    return [cached / len(arrival.blocks) for cached in arrival.cached_blocks]


def kv_cache_utilization_scores(arrival: Arrival, ranks: Sequence[RankState]) -> list[float]:
    """Of one request at most, the one that runs: those that wait hold nothing."""
    return [1 - (len(rank.requests[0][2]) if rank.requests else 0) / rank.num_blocks for rank in ranks]


def queue_scores(arrival: Arrival, ranks: Sequence[RankState]) -> list[float]:
    """By the queues, compared with each other."""
    queues = _queues(ranks)
    shortest, longest = min(queues), max(queues)
    if shortest == longest:
        return [1.0] * len(ranks)
    return [(longest - queue) / (longest - shortest) for queue in queues]


def load_aware_scores(arrival: Arrival, ranks: Sequence[RankState]) -> list[float]:
    """By the queues, compared with a threshold."""
    return [0.5 * (1 - min(queue, QUEUE_THRESHOLD) / QUEUE_THRESHOLD) for queue in _queues(ranks)]


DEFAULT: Final[Mapping[Scorer, float]] = {
    prefix_cache_scores: 3.0,
    kv_cache_utilization_scores: 2.0,
    queue_scores: 2.0,
}
LOAD_AWARE: Final[Mapping[Scorer, float]] = {prefix_cache_scores: 2.0, load_aware_scores: 1.0}


class LlmD:
    """See the module. Implements `Peer`.

    Args:
        weights: of the scorers.
        seed: of the ties.
    """

    def __init__(self, weights: Mapping[Scorer, float], seed: int) -> None:
        self._weights = weights
        self._rng = random.Random(seed)

    def choose(self, arrival: Arrival, ranks: Sequence[RankState]) -> int:
        """The rank with the highest score."""
        totals = [0.0] * len(ranks)
        for scorer, weight in self._weights.items():
            for rank, score in enumerate(scorer(arrival, ranks)):
                totals[rank] += weight * score
        best = max(totals)
        return self._rng.choice([rank for rank, total in enumerate(totals) if total == best])


def _queues(ranks: Sequence[RankState]) -> list[int]:
    return [max(0, len(rank.requests) - 1) for rank in ranks]
