"""The lower bounds of the mean time to first token, by hand."""

from __future__ import annotations

import pytest

from app.simulation.config import ClusterConfig, RankConfig
from app.simulation.results.bounds import Bound, lower_bound, uncached_tokens
from app.simulation.traces.request import SimulatedRequest

RANK = RankConfig(prefill_tokens_per_s=10.0, block_size=10, num_blocks=100)


def bound(ranks: int, *requests: SimulatedRequest) -> Bound:
    return lower_bound(ClusterConfig(ranks=ranks, rank=RANK), requests)


SHORT = SimulatedRequest(0.0, 10, 1, [1])
LONG = SimulatedRequest(0.0, 30, 1, [2, 3, 4])


def test_one_rank_does_the_shorter_first() -> None:
    # 1 s, then 3 s: first tokens after 1 and 4 s, which one rank reaches.
    assert bound(1, LONG, SHORT).ttft_mean_s == pytest.approx(2.5)


def test_ranks_enough_leave_the_work_itself() -> None:
    assert bound(2, LONG, SHORT).ttft_mean_s == pytest.approx(2.0)


def test_a_shorter_one_interrupts() -> None:
    # The long one is computed from 0 to 1 s and 2 to 4 s: on average at (0.5 + 2 * 3) / 3 s. The short one
    # at 1.5 s. Half of their own time each is added, and the short one's arrival taken off.
    late = SimulatedRequest(1.0, 10, 1, [1])
    expected = ((0.5 + 2 * 3) / 3 + 1.5 + 1.5 + 0.5 - 1) / 2
    assert bound(1, LONG, late).ttft_mean_s == pytest.approx(expected)


def test_a_cache_without_end_credits_leading_blocks_but_the_last_token() -> None:
    requests = [
        SimulatedRequest(0.0, 30, 1, [1, 2, 3]),
        SimulatedRequest(0.0, 30, 1, [1, 2, 3]),
        SimulatedRequest(0.0, 35, 1, [1, 9, 3, 4]),
        SimulatedRequest(0.0, 41, 1, [1, 2, 3, 4, 5]),
    ]
    assert uncached_tokens(requests, 10) == [30, 10, 25, 1]
    assert bound(1, *requests).hit_rate == pytest.approx(1 - 66 / 136)
