"""What no policy can beat on `FifoRank`s, whatever it knows.

Let u_i be the tokens that request i has to compute if one cache that never evicts holds the blocks of all
requests before it. No rank ever holds more, so every policy computes at least u_i, in at least
p_i = u_i / rate seconds. Two lower bounds of the mean time to first token follow.

1. **No waiting.** A request's time is at least p_i: mean(p_i).

2. **Waiting that can't be avoided.** Each rank computes one prompt at a time, from its start to its end C_i
   without a break; so the mean moment at which i is computed is M_i = C_i - p_i / 2. Let one machine, n times
   as fast as a rank, do what the n ranks do: it does all that they do at any moment, i's M_i stay what they
   are, and it isn't held to doing a prompt in one go. The least possible sum of M_i on such a machine is
   reached by always working on the arrived prompt with the least p_i, interrupting others: exchanging two
   pieces of work towards it never raises the sum. With those M_i:

       mean time to first token >= mean(M_i + p_i / 2 - arrival_i)

   (Prompts that take longer than p_i don't help: cutting each down to its first p_i seconds leaves a
   possible schedule that ends no later.)

`lower_bound` gives these. `bound_of_caches` takes the caches' size into account: all ranks' caches together
hold at most n * num_blocks different blocks, those of the prompt that one of them serves among these. A
single cache of that size could hold the same blocks at every moment, and would hit wherever the rank hits. So
no policy has more hits in all than `optimal_hits` finds for it, whatever it knows and whatever its ranks
evict; and with w tokens left to compute, the mean time to first token is at least w / rate / requests.
Waiting isn't in that: the hits are bounded in their sum, not for each request. Where the second bound is
higher, it stands.

Source: M. Goemans, M. Queyranne, A. Schulz, M. Skutella, Y. Wang, "Single Machine Scheduling with Release
Dates", 2002 (mean busy times); C.-F. Chou, M. Queyranne, D. Simchi-Levi, "The asymptotic performance ratio of
an on-line algorithm for uniform parallel machine scheduling with release dates", 2006 (the fast machine).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from app.simulation.config import ClusterConfig
from app.simulation.results.optimal_eviction import optimal_hits
from app.simulation.traces.request import SimulatedRequest


@dataclass(frozen=True)
class Bound:
    """What is best possible.

    Attributes:
        hit_rate: no policy's is higher.
        ttft_mean_s: no policy's mean time to first token is lower.
    """

    hit_rate: float
    ttft_mean_s: float


def lower_bound(config: ClusterConfig, requests: Iterable[SimulatedRequest]) -> Bound:
    """The bound for `requests`, at least one, on `config`'s ranks, which don't decode."""
    requests = list(requests)
    uncached = uncached_tokens(requests, config.rank.block_size)
    prompt_tokens = sum(each.num_tokens for each in requests)
    services = [each / config.rank.prefill_tokens_per_s for each in uncached]
    arrivals = [each.arrival_s for each in requests]
    middles = _mean_busy_times(arrivals, services, config.ranks)
    queued = fmean(
        middle + service / 2 - arrival
        for middle, service, arrival in zip(middles, services, arrivals, strict=True)
    )
    return Bound(1 - sum(uncached) / prompt_tokens, max(fmean(services), queued))


def bound_of_caches(config: ClusterConfig, requests: Iterable[SimulatedRequest]) -> Bound:
    """As `lower_bound`, for caches of the size that `config`'s ranks have: at least as tight."""
    requests = list(requests)
    endless = lower_bound(config, requests)
    num_blocks = config.ranks * config.rank.num_blocks
    hits = sum(optimal_hits(requests, num_blocks, config.rank.block_size)) * config.rank.block_size
    prompt_tokens = sum(each.num_tokens for each in requests)
    computing_s = (prompt_tokens - hits) / config.rank.prefill_tokens_per_s / len(requests)
    return Bound(hits / prompt_tokens, max(computing_s, endless.ttft_mean_s))


def uncached_tokens(requests: Sequence[SimulatedRequest], block_size: int) -> list[int]:
    """What each request computes where one cache without end holds the blocks of all before it."""
    seen: set[int] = set()
    uncached = []
    for request in requests:
        reusable = request.block_ids[: (request.num_tokens - 1) // block_size]
        hits = next((depth for depth, block in enumerate(reusable) if block not in seen), len(reusable))
        uncached.append(request.num_tokens - hits * block_size)
        seen.update(request.block_ids)
    return uncached


def _mean_busy_times(arrivals: Sequence[float], services: Sequence[float], speed: int) -> list[float]:
    """When each is worked on, on average, by one machine that always takes the least service time first."""
    middles = [0.0] * len(arrivals)
    left = [service / speed for service in services]
    waiting: list[tuple[float, int]] = []
    now = 0.0
    for position, arrival in enumerate([*arrivals, math.inf]):
        while waiting and now < arrival:
            service, first = waiting[0]
            end = min(arrival, now + left[first])
            middles[first] += (end - now) * (end + now) / 2 * speed / service
            if end < arrival or end - now >= left[first]:
                heapq.heappop(waiting)
            left[first] -= end - now
            now = end
        now = max(now, arrival)
        if position < len(arrivals):
            heapq.heappush(waiting, (services[position], position))
    return middles
