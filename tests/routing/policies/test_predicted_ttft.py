"""`predicted_ttft`: the formula, and ties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.routing.policies.base import Choice, PolicyInput
from app.routing.policies.predicted_ttft import PREDICTED_TTFT
from app.routing.rank_view import NO_PRICES, PRICE_ROWS, RankView, RankViews
from tests.support.routing.views import VIEWS, choose, new_view


def predict(views: list[RankView], num_tokens: int, mean_uncached_tokens: float | None = None) -> Choice:
    return choose("predicted_ttft", views, num_tokens, mean_uncached_tokens)


def test_cost_is_wait_plus_uncached_when_no_request_waits() -> None:
    choice = predict([new_view(0, cached_tokens=600), new_view(1, prefill_rate=500.0)], 1000, 400.0)
    assert choice.costs == pytest.approx((0.4, 2.0))
    assert choice.rank == 0
    assert choice.predicted_ttft_s == pytest.approx(0.4)


def test_a_rank_without_room_costs_the_time_until_enough_is_released() -> None:
    # 1,000 tokens are to be computed, and there is room for 400 and for 0: 600 and 1,000 must be released.
    full = [new_view(0, free_tokens=400, release_s=0.005), new_view(1, free_tokens=0, release_s=0.002)]
    choice = predict([*full, new_view(2, waiting_tokens=2500), new_view(3, prefill_rate=100.0)], 1000)
    assert choice.costs == pytest.approx((4.0, 3.0, 3.5, 10.0))
    assert choice.rank == 1
    assert choice.predicted_ttft_s == pytest.approx(3.0)


def test_when_every_rank_lacks_room_uncached_work_gets_dearer_as_when_every_rank_queues() -> None:
    waits = [new_view(0, free_tokens=0, release_s=0.003), new_view(1, waiting_tokens=1000, cached_tokens=900)]
    queues = [new_view(0, waiting_tokens=3000), new_view(1, waiting_tokens=1000, cached_tokens=900)]
    by_waits, by_queues = (predict(each, 1000, 500.0).costs for each in (waits, queues))
    assert by_waits == pytest.approx(by_queues)


def test_work_before_the_prompt_and_the_wait_for_room_pass_together() -> None:
    views = [
        new_view(0, free_tokens=400, release_s=0.005, waiting_tokens=2000),
        new_view(1, free_tokens=0, release_s=0.0001, batch_slot_wait_s=5.0, waiting_tokens=7000),
    ]
    waits = [cost - 1.0 for cost in predict(views, 1000, 1e9).costs]
    assert waits == pytest.approx((3.0, 7.0), rel=1e-2)


def test_what_is_cached_of_a_prompt_needs_no_room() -> None:
    choice = predict([new_view(0, cached_tokens=600, free_tokens=400, release_s=9.0), new_view(1)], 1000)
    assert choice.costs == pytest.approx((0.4, 1.0))


def test_when_every_rank_queues_uncached_work_gets_dearer() -> None:
    # Waits are 3 s and 1 s: harmonic mean 1.5 s, twice that over a mean prefill time of 0.5 s, so q = 6.
    views = [new_view(0, waiting_tokens=3000, cached_tokens=800), new_view(1, waiting_tokens=1000)]
    choice = predict(views, 1000, 500.0)
    assert choice.costs == pytest.approx((3.0 + 7 * 0.2, 1.0 + 7 * 1.0))
    assert choice.rank == 0
    assert choice.predicted_ttft_s == pytest.approx(3.2)


def test_one_idle_rank_is_enough_to_make_the_choice_selfish() -> None:
    views = [new_view(0, waiting_tokens=2000, cached_tokens=800), new_view(1)]
    assert predict(views, 1000, 500.0).costs == pytest.approx((2.2, 1.0))


def test_before_any_request_was_served_the_prompt_stands_for_the_mean() -> None:
    idle = predict([new_view(0), new_view(1)], 1000, None)
    assert idle.costs == pytest.approx((1.0, 1.0))
    waiting = predict([new_view(0, waiting_tokens=1000), new_view(1, waiting_tokens=1000)], 1000, None)
    assert waiting.costs == pytest.approx((1.0 + 3 * 1.0,) * 2)


def test_what_a_rank_evicts_and_what_it_will_have_evicted_count_as_work() -> None:
    dear = NO_PRICES._replace(eviction_price=0.25, lost_if_new=0.1, lost_if_return=0.5)
    views = RankViews.of([new_view(0, cached_tokens=600, prices=dear), new_view(1)])
    for loss_row, costs in (
        (None, (0.4, 1.0)),
        (PRICE_ROWS.lost_if_new, (1.25 * 0.4 + 0.1, 1.0)),
        (PRICE_ROWS.lost_if_return, (1.25 * 0.4 + 0.5, 1.0)),
    ):
        choice = PREDICTED_TTFT.choose(views, PolicyInput(1000, 400.0, loss_row=loss_row))
        assert choice.costs == pytest.approx(costs)
        assert choice.predicted_ttft_s == pytest.approx(0.4 if choice.rank == 0 else 1.0)


def test_work_where_others_are_bound_costs_their_delay() -> None:
    # Busy for 300 tokens on average: 2 * 0.1 of each is lost where they wait, a quarter of it as they leave.
    bound = NO_PRICES._replace(bound_load=0.2, bound_tokens=900.0)
    choice = predict([new_view(0, waiting_tokens=100, prices=bound), new_view(1, waiting_tokens=2000)], 400)
    prefill_s, harmonic_mean_s = 0.4, 2 / (1 / 0.1 + 1 / 2.0)
    growth = 1 + 2 * harmonic_mean_s / prefill_s
    assert choice.costs == pytest.approx((0.1 + (growth + 0.2 * 300 / 1200) * 0.4, 2.0 + growth * 0.4))


def test_what_may_be_copied_counts_nowhere() -> None:
    views = RankViews.of([new_view(0, cached_tokens=600), new_view(1), new_view(2, cached_tokens=500)])
    choice = PREDICTED_TTFT.choose(views, PolicyInput(1000, 400.0, copyable_tokens=600))
    assert choice.costs == pytest.approx((0.4, 0.4, 0.4))


def test_what_may_be_copied_delays_no_other_either() -> None:
    """So a conversation goes where fewer are bound, and not where what it begins with is."""
    more, fewer = (NO_PRICES._replace(bound_load=load, bound_tokens=800.0) for load in (0.2, 0.1))
    views = RankViews.of([new_view(0, cached_tokens=600, prices=more), new_view(1, prices=fewer)])
    choice = PREDICTED_TTFT.choose(views, PolicyInput(1000, 400.0, copyable_tokens=600))
    assert choice.costs == pytest.approx((0.4 * (1 + 0.2 * 200 / 1000), 0.4 * (1 + 0.1 * 200 / 1000)))
    assert choice.rank == 1


def test_a_faster_rank_wins_with_the_same_queue() -> None:
    views = [new_view(0, waiting_tokens=1000), new_view(1, waiting_tokens=1000, prefill_rate=3000.0)]
    assert predict(views, 100, 100.0).rank == 1


def test_ties_go_to_fewer_requests_then_least_assigned_then_the_first() -> None:
    views = [
        new_view(0, num_requests=3),
        new_view(1, num_requests=2, assigned_tokens=9),
        new_view(2, num_requests=2),
    ]
    assert predict(views, 10, None).rank == 2
    assert predict(views[:2], 10, None).rank == 1
    assert predict([new_view(0), new_view(1)], 10, None).rank == 0


def test_costs_that_differ_by_rounding_are_ties() -> None:
    views = [new_view(0, assigned_tokens=1), new_view(1, prefill_rate=1000.0 * (1 - 1e-12))]
    assert predict(views, 1000, None).rank == 1


def test_predictions_within_half_a_percent_are_ties() -> None:
    near = [new_view(0, assigned_tokens=1), new_view(1, waiting_tokens=4)]
    assert predict(near, 1000, None).rank == 1
    different = [new_view(0, assigned_tokens=1), new_view(1, waiting_tokens=6)]
    assert predict(different, 1000, None).rank == 0


@given(views=VIEWS, num_tokens=st.integers(1000, 10**6), mean=st.floats(1, 1e6))
def test_predicted_ttft_is_its_formula(views: list[RankView], num_tokens: int, mean: float) -> None:
    waits = [each.counts.waiting_tokens / each.prefill_rate for each in views]
    idle = any(wait == 0 for wait in waits)
    harmonic_mean = 0.0 if idle else len(waits) / sum(1 / wait for wait in waits)
    q = 2 * harmonic_mean / (sum(mean / each.prefill_rate for each in views) / len(views))
    prefills = [(num_tokens - each.cached_tokens) / each.prefill_rate for each in views]
    choice = predict(views, num_tokens, mean)
    expected = [wait + (1 + q) * prefill for wait, prefill in zip(waits, prefills, strict=True)]
    assert choice.costs.tolist() == pytest.approx(expected)
    chosen = [each.rank for each in views].index(choice.rank)
    assert choice.predicted_ttft_s == pytest.approx(waits[chosen] + prefills[chosen])


@given(views=VIEWS, num_tokens=st.integers(1000, 10**6), mean=st.none() | st.floats(1, 1e6))
def test_one_rate_for_all_ranks_costs_as_the_same_rate_for_each(
    views: list[RankView], num_tokens: int, mean: float | None
) -> None:
    columns = RankViews.of([replace(each, prefill_rate=700.0) for each in views])
    alike = replace(columns, prefill_rate=700.0)
    one, each = (PREDICTED_TTFT.choose(both, PolicyInput(num_tokens, mean)) for both in (alike, columns))
    assert one.costs.tolist() == pytest.approx(each.costs.tolist())
    assert one.predicted_ttft_s == pytest.approx(each.predicted_ttft_s)
