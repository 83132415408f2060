"""Optimal eviction: beside a search through all that can be kept, and by hand."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulation.config import ClusterConfig, RankConfig
from app.simulation.results.bounds import bound_of_caches, lower_bound
from app.simulation.results.optimal_eviction import optimal_hits
from app.simulation.traces.request import SimulatedRequest

Block = tuple[int, ...]
"""All names up to the block's own: so equal blocks have equal prefixes."""


def request(*block_ids: int, last_tokens: int = 10) -> SimulatedRequest:
    return SimulatedRequest(0.0, 10 * (len(block_ids) - 1) + last_tokens, 1, block_ids)


def blocks(each: SimulatedRequest) -> list[Block]:
    return [tuple(each.block_ids[: depth + 1]) for depth in range(len(each.block_ids))]


def leading(each: SimulatedRequest, cached: frozenset[Block]) -> int:
    """Blocks that `each` needn't compute."""
    reusable = blocks(each)[: (each.num_tokens - 1) // 10]
    return next((depth for depth, block in enumerate(reusable) if block not in cached), len(reusable))


def best_of_all(requests: list[SimulatedRequest], ranks: int, num_blocks: int) -> int:
    """The most hits of any assignment to ranks and any evictions, found by trying all of them."""

    @cache
    def most(position: int, caches: tuple[frozenset[Block], ...]) -> int:
        if position == len(requests):
            return 0
        own = frozenset(blocks(requests[position]))
        best = 0
        for rank, cached in enumerate(caches):
            others = sorted(cached - own)
            room = min(len(others), num_blocks - len(own))
            for kept in combinations(others, room):  # keeping less is never better
                after = (*caches[:rank], own | frozenset(kept), *caches[rank + 1 :])
                hits = leading(requests[position], cached) + most(position + 1, after)
                best = max(best, hits)
        return best

    return most(0, (frozenset(),) * ranks)


PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=3)


@st.composite
def traces(draw: st.DrawFn) -> list[SimulatedRequest]:
    prompts = draw(st.lists(st.tuples(PROMPTS, st.integers(1, 10)), min_size=1, max_size=7))
    return [request(*prompt, last_tokens=last) for prompt, last in prompts]


@given(requests=traces(), num_blocks=st.integers(3, 6))
def test_one_cache_can_have_just_as_much(requests: list[SimulatedRequest], num_blocks: int) -> None:
    hits = optimal_hits(requests, num_blocks, 10)
    assert sum(hits) == best_of_all(requests, 1, num_blocks)
    assert all(0 <= each <= (one.num_tokens - 1) // 10 for each, one in zip(hits, requests, strict=True))


@given(requests=traces(), num_blocks=st.integers(3, 4))
def test_ranks_can_have_no_more(requests: list[SimulatedRequest], num_blocks: int) -> None:
    assert best_of_all(requests, 2, num_blocks) <= sum(optimal_hits(requests, 2 * num_blocks, 10))


@pytest.mark.parametrize(
    ("num_blocks", "hits"),
    [(100, [0, 0, 0, 2, 2, 2]), (7, [0, 0, 0, 2, 2, 2]), (6, [0, 0, 0, 2, 1, 2]), (3, [0, 0, 0, 0, 0, 0])],
)
def test_what_is_used_last_goes_first_and_its_end_before_its_beginning(
    num_blocks: int, hits: list[int]
) -> None:
    documents = [request(1, 2, 3), request(4, 5, 6), request(7, 8, 9)]
    # Two blocks of each are reusable, and the prompt that is served needs three.
    assert optimal_hits([*documents, *documents], num_blocks, 10) == hits


def test_the_bound_counts_hits_in_their_sum() -> None:
    config = ClusterConfig(ranks=1, rank=RankConfig(prefill_tokens_per_s=10, block_size=10, num_blocks=3))
    far = [
        SimulatedRequest(100.0 * number, 30, 1, [3 * (number % 2) + k for k in range(3)])
        for number in range(4)
    ]
    assert lower_bound(config, far).ttft_mean_s == pytest.approx((3 + 3 + 1 + 1) / 4)
    assert lower_bound(config, far).hit_rate == pytest.approx(40 / 120)
    # Of two prompts of the cache's size that alternate, none is ever there.
    assert bound_of_caches(config, far).ttft_mean_s == pytest.approx(3)
    assert bound_of_caches(config, far).hit_rate == 0
    # With queues, what can't be avoided even with endless caches may be more.
    at_once = [SimulatedRequest(0.0, 30, 1, each.block_ids) for each in far]
    queued = lower_bound(config, at_once).ttft_mean_s
    assert queued > 3
    assert bound_of_caches(config, at_once).ttft_mean_s == pytest.approx(queued)
