"""NVIDIA Dynamo's KV router: the lowest cost in blocks.

    cost = overlap_score_weight * potential prefill blocks + potential active blocks

Potential prefill blocks are the tokens that the worker would have to compute with this request, those of the
requests that it has not computed yet included, over the block size. Potential active blocks are the different
blocks of all its requests and of this one. At `router_temperature` 0 the lowest cost is taken, of equal ones
the worker with the smallest radix tree, then at random. Here nothing is decoded: a request is active until it
is computed.

Source: `ai-dynamo/dynamo`, `docs/components/router/README.md` (cost function; weight 1.0 and temperature 0.0
are the defaults) and `lib/kv-router`: `DefaultWorkerSelector`, `ActiveSequences.potential_blocks_and_tokens`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from benchmarks.peers.replay import Arrival, RankState

OVERLAP_SCORE_WEIGHT: Final = 1.0


class Dynamo:
    """See the module. Implements `Peer`.

    Args:
        seed: of the ties.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def choose(self, arrival: Arrival, ranks: Sequence[RankState]) -> int:
        """The rank with the lowest cost."""
        keys = [(_cost(arrival, rank, state), state.num_cached_blocks) for rank, state in enumerate(ranks)]
        best = min(keys)
        return self._rng.choice([rank for rank, key in enumerate(keys) if key == best])


def _cost(arrival: Arrival, rank: int, state: RankState) -> float:
    prefill_tokens = state.prefill_tokens + arrival.uncached_tokens(rank)
    new_blocks = sum(block not in state.active_blocks for block in arrival.blocks)
    active_blocks = len(state.active_blocks) + new_blocks
    return OVERLAP_SCORE_WEIGHT * prefill_tokens / arrival.block_size + active_blocks
