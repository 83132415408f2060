"""Policies as pure functions: the formula, ties, and what each ignores."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config import PolicyName
from app.routing.policy import NEAR_TIE, POLICIES, TIE, RankView, least_loaded, predicted_ttft, round_robin

IDLE = RankView(
    rank=0,
    cached_tokens=0,
    waiting_tokens=0,
    num_requests=0,
    prefill_rate=1000.0,
    assigned_tokens=0,
    assigned_requests=0,
    trust="exact",
)


def view(rank: int, **changes: object) -> RankView:
    return replace(IDLE, rank=rank, **changes)  # type: ignore[arg-type]


def test_every_config_name_is_a_policy() -> None:
    assert set(POLICIES) == set(get_args(PolicyName))


def test_cost_is_wait_plus_uncached_when_nobody_waits() -> None:
    choice = predicted_ttft([view(0, cached_tokens=600), view(1, prefill_rate=500.0)], 1000, 400.0)
    assert choice.costs == pytest.approx((0.4, 2.0))
    assert choice.rank == 0
    assert choice.predicted_ttft_s == pytest.approx(0.4)


def test_when_every_rank_queues_uncached_work_gets_dearer() -> None:
    # Waits are 3 s and 1 s: harmonic mean 1.5 s, twice that over a mean service time of 0.5 s, so q = 6.
    views = [view(0, waiting_tokens=3000, cached_tokens=800), view(1, waiting_tokens=1000)]
    choice = predicted_ttft(views, 1000, 500.0)
    assert choice.costs == pytest.approx((3.0 + 7 * 0.2, 1.0 + 7 * 1.0))
    assert choice.rank == 0
    assert choice.predicted_ttft_s == pytest.approx(3.2)


def test_one_idle_rank_is_enough_to_make_the_choice_selfish() -> None:
    views = [view(0, waiting_tokens=2000, cached_tokens=800), view(1)]
    assert predicted_ttft(views, 1000, 500.0).costs == pytest.approx((2.2, 1.0))


def test_before_any_request_was_served_the_prompt_stands_for_the_mean() -> None:
    idle = predicted_ttft([view(0), view(1)], 1000, None)
    assert idle.costs == pytest.approx((1.0, 1.0))
    waiting = predicted_ttft([view(0, waiting_tokens=1000), view(1, waiting_tokens=1000)], 1000, None)
    assert waiting.costs == pytest.approx((1.0 + 3 * 1.0,) * 2)


def test_a_faster_rank_wins_with_the_same_queue() -> None:
    views = [view(0, waiting_tokens=1000), view(1, waiting_tokens=1000, prefill_rate=3000.0)]
    assert predicted_ttft(views, 100, 100.0).rank == 1


def test_ties_go_to_fewer_requests_then_least_assigned_then_lowest_rank() -> None:
    views = [view(0, num_requests=3), view(1, num_requests=2, assigned_tokens=9), view(2, num_requests=2)]
    assert predicted_ttft(views, 10, None).rank == 2
    assert predicted_ttft(views[:2], 10, None).rank == 1
    assert predicted_ttft([view(1), view(0)], 10, None).rank == 0


def test_costs_that_differ_by_rounding_are_ties() -> None:
    views = [view(0, assigned_tokens=1), view(1, prefill_rate=1000.0 * (1 - 1e-12))]
    assert predicted_ttft(views, 1000, None).rank == 1


def test_predictions_within_half_a_percent_are_ties() -> None:
    near = [view(0, assigned_tokens=1), view(1, waiting_tokens=4)]
    assert predicted_ttft(near, 1000, None).rank == 1
    apart = [view(0, assigned_tokens=1), view(1, waiting_tokens=6)]
    assert predicted_ttft(apart, 1000, None).rank == 0


def test_least_loaded_is_blind_to_prefixes() -> None:
    views = [view(0, num_requests=2, cached_tokens=900), view(1, num_requests=1), view(2, num_requests=1)]
    assert least_loaded(views, 1000).rank == 1
    assert least_loaded([views[2], replace(views[1], assigned_tokens=5)], 1000).rank == 2


def test_round_robin_takes_turns_whatever_the_load() -> None:
    views = [view(0, num_requests=9, waiting_tokens=9000), view(1), view(2)]
    turns = []
    for _ in range(6):
        rank = round_robin(views, 10).rank
        turns.append(rank)
        views[rank] = replace(views[rank], assigned_requests=views[rank].assigned_requests + 1)
    assert turns == [0, 1, 2, 0, 1, 2]


VIEWS = st.lists(
    st.builds(
        RankView,
        rank=st.integers(0, 63),
        cached_tokens=st.integers(0, 999),
        waiting_tokens=st.integers(0, 10**9),
        num_requests=st.integers(0, 10**6),
        prefill_rate=st.floats(1e-3, 1e9),
        assigned_tokens=st.integers(0, 10**12),
        assigned_requests=st.integers(0, 10**9),
        trust=st.just("exact"),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda each: each.rank,
)


@given(views=VIEWS, num_tokens=st.integers(1000, 10**6), mean=st.none() | st.floats(1, 1e6))
def test_every_policy_chooses_a_cheapest_rank_whatever_the_order(
    views: list[RankView], num_tokens: int, mean: float | None
) -> None:
    for policy in POLICIES.values():
        choice = policy(views, num_tokens, mean)
        cost = dict(zip((each.rank for each in views), choice.costs, strict=True))
        tie = NEAR_TIE if policy is predicted_ttft else TIE
        assert cost[choice.rank] <= min(choice.costs) * (1 + tie)
        assert choice.predicted_ttft_s > 0
