"""Conversations that share a beginning, in the simulator: on which ranks they live, and what evicts them."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import pytest

from app.simulation.config import ClusterConfig, RankConfig
from app.simulation.results.bounds import lower_bound
from app.simulation.simulator import simulate
from app.simulation.traces.request import SimulatedRequest

BLOCK_SIZE = 512
SYSTEM = (0, 1, 2, 3)


def cluster(ranks: int, num_blocks: int) -> ClusterConfig:
    return ClusterConfig(ranks=ranks, rank=RankConfig(num_blocks=num_blocks, block_size=BLOCK_SIZE))


def request(arrival_s: float, blocks: tuple[int, ...]) -> SimulatedRequest:
    return SimulatedRequest(arrival_s, BLOCK_SIZE * len(blocks), 1, blocks)


def conversations(number: int, turns: int, gap_s: float) -> list[SimulatedRequest]:
    """Each has a turn before any has its next; two blocks are new in every turn."""
    own: list[tuple[int, ...]] = [()] * number
    requests = []
    for position in range(number * turns):
        which = position % number
        own[which] += (1000 + 2 * position, 1001 + 2 * position)
        requests.append(request(position * gap_s, (*SYSTEM, *own[which])))
    return requests


@pytest.mark.parametrize("gap_s", [0.2, 4.0, 60.0])
def test_a_few_conversations_that_never_meet_use_both_ranks(gap_s: float) -> None:
    outcome = simulate(cluster(2, 3000), conversations(8, 5, gap_s), "predicted_ttft")
    assert min(Counter(outcome.ranks).values()) >= 15
    assert set(outcome.ranks) == {0, 1}


@pytest.mark.parametrize("gap_s", [0.3, 4.0])
def test_conversations_that_fit_all_caches_together_are_computed_once(gap_s: float) -> None:
    # 16 conversations of 40 blocks in the end: three caches of 300 blocks hold them, one or two do not.
    config, requests = cluster(4, 300), conversations(16, 20, gap_s)
    mean_s = simulate(config, requests, "predicted_ttft").figures().ttft_mean_s
    assert mean_s <= 1.2 * lower_bound(config, requests).ttft_mean_s


def test_documents_that_are_read_once_leave_conversations_in_place() -> None:
    config = cluster(4, 600)
    live = conversations(20, 30, 1.0)
    documents = [
        request(0.37 + 1.5 * number, tuple(range(10**5 + 20 * number, 10**5 + 20 * number + 20)))
        for number in range(400)
    ]
    mixed = sorted([*live, *documents], key=lambda each: each.arrival_s)
    outcome = simulate(config, mixed, "predicted_ttft")
    ttfts_s = [
        ttft_s for each, ttft_s in zip(mixed, outcome.ttfts_s, strict=True) if each.block_ids[0] == SYSTEM[0]
    ]
    alone_s = simulate(config, live, "predicted_ttft").figures().ttft_mean_s
    assert fmean(ttfts_s) <= 1.3 * alone_s


def test_prompts_that_never_return_do_not_spread_what_they_begin_with() -> None:
    requests = [
        request(4.0 * number, (*SYSTEM, 1000 + 2 * number, 1001 + 2 * number)) for number in range(60)
    ]
    outcome = simulate(cluster(2, 3000), requests, "predicted_ttft")
    assert sum(outcome.prompt_tokens) - sum(outcome.cached_tokens) <= (60 * 2 + 2 * 4) * BLOCK_SIZE
