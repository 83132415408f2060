"""Policies as pure functions: the formula, ties, and what each ignores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config import PolicyName
from app.routing.policies.policy import (
    NEAR_TIE,
    POLICIES,
    Hints,
    least_loaded,
    power_of_two,
    predicted_ttft,
    prefix_affinity,
    random,
    round_robin,
    session,
)
from app.routing.policies.rendezvous import rendezvous_weights
from app.routing.rank_view import RankView, RankViews

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


def test_a_rank_without_room_costs_the_time_until_enough_is_released() -> None:
    # 1,000 tokens are to be computed, and there is room for 400 and for 0: 600 and 1,000 must be released.
    full = [view(0, free_tokens=400, release_s=0.005), view(1, free_tokens=0, release_s=0.002)]
    choice = predicted_ttft([*full, view(2, waiting_tokens=2500), view(3, prefill_rate=100.0)], 1000)
    assert choice.costs == pytest.approx((4.0, 3.0, 3.5, 10.0))
    assert (choice.rank, choice.predicted_ttft_s) == (1, pytest.approx(3.0))


def test_when_every_rank_lacks_room_uncached_work_gets_dearer_as_when_every_rank_queues() -> None:
    waits = [view(0, free_tokens=0, release_s=0.003), view(1, waiting_tokens=1000, cached_tokens=900)]
    queues = [view(0, waiting_tokens=3000), view(1, waiting_tokens=1000, cached_tokens=900)]
    by_waits, by_queues = (predicted_ttft(each, 1000, 500.0).costs for each in (waits, queues))
    assert by_waits == pytest.approx(by_queues)


def test_work_before_the_prompt_and_the_wait_for_room_pass_together() -> None:
    views = [
        view(0, free_tokens=400, release_s=0.005, waiting_tokens=2000),
        view(1, free_tokens=0, release_s=0.0001, batch_slot_wait_s=5.0, waiting_tokens=7000),
    ]
    waits = [cost - 1.0 for cost in predicted_ttft(views, 1000, 1e9).costs]
    assert waits == pytest.approx((3.0, 7.0), rel=1e-2)


def test_what_is_cached_of_a_prompt_needs_no_room() -> None:
    choice = predicted_ttft([view(0, cached_tokens=600, free_tokens=400, release_s=9.0), view(1)], 1000)
    assert choice.costs == pytest.approx((0.4, 1.0))


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


def test_ties_go_to_fewer_requests_then_least_assigned_then_the_first() -> None:
    views = [view(0, num_requests=3), view(1, num_requests=2, assigned_tokens=9), view(2, num_requests=2)]
    assert predicted_ttft(views, 10, None).rank == 2
    assert predicted_ttft(views[:2], 10, None).rank == 1
    assert predicted_ttft([view(0), view(1)], 10, None).rank == 0


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


def test_random_draws_every_rank_for_as_large_a_part_of_the_draws() -> None:
    views = [view(0, num_requests=9), view(1), view(2, cached_tokens=900), view(3)]
    ranks = [random(views, 1000, hints=Hints(draw=draw)).rank for draw in (0.0, 0.24, 0.25, 0.6, 0.9999)]
    assert ranks == [0, 0, 1, 2, 3]


def test_power_of_two_draws_every_ordered_pair_for_as_large_a_part_of_the_draws() -> None:
    views = [view(rank, num_requests=rank) for rank in range(5)]
    pairs = Counter()
    for step in range(20):
        choice = power_of_two(views, 10, hints=Hints(draw=(step + 0.5) / 20))
        costs = choice.costs.tolist()
        pairs[costs.index(0.0), costs.index(1.0)] += 1
    # The less loaded is the lower rank here, whichever was drawn first.
    assert pairs == {(low, high): 2 for low in range(5) for high in range(low + 1, 5)}


def test_power_of_two_between_equals_takes_the_one_with_less_work_so_far() -> None:
    views = [view(0, assigned_tokens=9), view(1)]
    assert {power_of_two(views, 10, hints=Hints(draw=draw)).rank for draw in (0.1, 0.9)} == {1}


def test_prefix_affinity_takes_the_longest_prefix_then_the_least_loaded() -> None:
    views = [view(0, cached_tokens=300), view(1, cached_tokens=400, num_requests=9), view(2), view(3)]
    assert prefix_affinity(views, 1000).rank == 1
    assert prefix_affinity(views, 1000).costs.tolist() == [700.0, 600.0, 1000.0, 1000.0]
    alike = [view(0, cached_tokens=400, num_requests=2), view(1, cached_tokens=400, num_requests=1)]
    assert prefix_affinity(alike, 1000).rank == 1
    assert prefix_affinity([view(0, num_requests=1), view(1)], 1000).rank == 1


@pytest.mark.parametrize(
    ("holder", "least", "passed_over"),
    [(32, 0, False), (33, 0, True), (43, 10, True), (350, 320, False), (353, 320, True), (366, 333, False)],
)
def test_overloaded_is_over_32_requests_more_and_over_1_1_times_as_many(
    holder: int, least: int, passed_over: bool
) -> None:
    views = [view(0, cached_tokens=900, num_requests=holder), view(1, num_requests=least)]
    assert prefix_affinity(views, 1000).rank == int(passed_over)
    home = next(str(i) for i in range(99) if session_rank([view(0), view(1)], str(i)) == 0)
    assert session_rank(views, home) == int(passed_over)


def session_rank(views: Sequence[RankView], session_id: str) -> int:
    return session(views, 1000, hints=Hints(session_id=session_id)).rank


def test_a_sessions_place_is_the_same_in_every_process() -> None:
    assert rendezvous_weights("user-7", 4)[3] == 0x6C3E8AB5CE5CABC6
    assert rendezvous_weights("user-7", 1024)[:4].tolist() == rendezvous_weights("user-7", 4).tolist()
    views = [view(rank) for rank in range(8)]
    assert [session_rank(views, f"user-{i}") for i in range(8)] == [3, 0, 0, 1, 2, 2, 5, 7]


def test_a_session_stays_whatever_the_others_hold() -> None:
    views = [view(rank) for rank in range(4)]
    home = session_rank(views, "a")
    views = [replace(each, cached_tokens=900 * (each.rank != home), num_requests=9) for each in views]
    assert session_rank(views, "a") == home


def test_without_a_session_it_is_the_default_policy_that_says_so() -> None:
    views = [view(0), view(1, cached_tokens=600)]
    choice, default = session(views, 1000, 400.0), predicted_ttft(views, 1000, 400.0)
    assert (choice.deferred_to, default.deferred_to) == ("predicted_ttft", None)
    assert (choice.rank, choice.predicted_ttft_s) == (default.rank, default.predicted_ttft_s)
    assert choice.costs.tolist() == default.costs.tolist()
    assert session(views, 1000, 400.0, Hints(session_id="a")).deferred_to is None


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


@given(views=VIEWS)
def test_columns_are_the_same_views(views: list[RankView]) -> None:
    columns = RankViews.of(views)
    assert list(columns) == views
    assert [columns[position] for position in range(len(columns))] == views
    assert columns[1:] == views[1:]
    assert list(columns.of_ranks({each.rank for each in views[1:]})) == views[1:]


@given(views=VIEWS, num_tokens=st.integers(1000, 10**6), mean=st.floats(1, 1e6))
def test_predicted_ttft_is_its_formula(views: list[RankView], num_tokens: int, mean: float) -> None:
    waits = [each.waiting_tokens / each.prefill_rate for each in views]
    idle = any(wait == 0 for wait in waits)
    harmonic_mean = 0.0 if idle else len(waits) / sum(1 / wait for wait in waits)
    q = 2 * harmonic_mean / (sum(mean / each.prefill_rate for each in views) / len(views))
    services = [(num_tokens - each.cached_tokens) / each.prefill_rate for each in views]
    choice = predicted_ttft(views, num_tokens, mean)
    expected = [wait + (1 + q) * service for wait, service in zip(waits, services, strict=True)]
    assert choice.costs.tolist() == pytest.approx(expected)
    chosen = [each.rank for each in views].index(choice.rank)
    assert choice.predicted_ttft_s == pytest.approx(waits[chosen] + services[chosen])


@given(views=VIEWS, num_tokens=st.integers(1000, 10**6), mean=st.none() | st.floats(1, 1e6))
def test_one_rate_for_all_ranks_is_as_the_same_rate_for_each(
    views: list[RankView], num_tokens: int, mean: float | None
) -> None:
    columns = RankViews.of([replace(each, prefill_rate=700.0) for each in views])
    alike = replace(columns, prefill_rate=700.0)
    assert list(alike) == list(columns)
    assert list(alike.of_ranks({views[0].rank})) == [columns[0]]
    one, each = predicted_ttft(alike, num_tokens, mean), predicted_ttft(columns, num_tokens, mean)
    assert one.costs.tolist() == pytest.approx(each.costs.tolist())
    assert one.predicted_ttft_s == pytest.approx(each.predicted_ttft_s)


DRAWS = st.floats(0, 1, exclude_max=True)
HINTS = st.builds(Hints, session_id=st.none() | st.text(max_size=8), draw=DRAWS)
FEW_REQUESTS = st.integers(0, 80)
"""Around what counts as overloaded."""


@given(views=VIEWS, num_tokens=st.integers(1000, 10**6), mean=st.none() | st.floats(1, 1e6), hints=HINTS)
def test_every_policy_chooses_a_cheapest_rank_whatever_the_order(
    views: list[RankView], num_tokens: int, mean: float | None, hints: Hints
) -> None:
    for policy in POLICIES.values():
        choice = policy(views, num_tokens, mean, hints)
        cost = dict(zip((each.rank for each in views), choice.costs, strict=True))
        is_predicted = policy is predicted_ttft or choice.deferred_to == "predicted_ttft"
        tie = NEAR_TIE if is_predicted else 0
        assert cost[choice.rank] <= min(choice.costs) * (1 + tie)
        held = {each.rank: each.cached_tokens for each in views}
        assert choice.cached_tokens == held[choice.rank]
        assert choice.predicted_ttft_s > 0


@given(views=VIEWS, draw=DRAWS)
def test_power_of_two_never_takes_the_worse_of_its_two(views: list[RankView], draw: float) -> None:
    choice = power_of_two(views, 1000, hints=Hints(draw=draw))
    assert sorted(choice.costs) == [0.0, 1.0, *[2.0] * (len(views) - 2)][: len(views)]
    chosen = views[choice.costs.tolist().index(0.0)]
    assert chosen.rank == choice.rank
    if len(views) > 1:
        other = views[choice.costs.tolist().index(1.0)]
        assert (chosen.num_requests, chosen.assigned_tokens) <= (other.num_requests, other.assigned_tokens)


@given(views=VIEWS, loads=st.lists(FEW_REQUESTS, min_size=8, max_size=8))
def test_prefix_affinity_passes_over_a_longer_prefix_only_where_overloaded(
    views: list[RankView], loads: list[int]
) -> None:
    views = [replace(each, num_requests=load) for each, load in zip(views, loads, strict=False)]
    choice = prefix_affinity(views, 1000)
    chosen = next(each for each in views if each.rank == choice.rank)
    least = min(each.num_requests for each in views)
    assert chosen.num_requests - least <= 32 or chosen.num_requests <= 1.1 * least
    for each in views:
        if (each.cached_tokens, -each.num_requests) > (chosen.cached_tokens, -chosen.num_requests):
            assert each.num_requests - least > 32
            assert each.num_requests > 1.1 * least


@given(views=VIEWS, session_id=st.text(max_size=8), loads=st.lists(FEW_REQUESTS, min_size=8, max_size=8))
def test_a_session_moves_only_when_its_own_rank_goes_or_is_overloaded(
    views: list[RankView], session_id: str, loads: list[int]
) -> None:
    views = [replace(each, num_requests=5) for each in views]
    home = session_rank(views, session_id)
    for gone in views:
        rest = [each for each in views if each != gone]
        if gone.rank != home:
            assert session_rank(rest, session_id) == home
        elif rest:
            # An overloaded home is as one that is gone.
            full = [replace(each, num_requests=5 + 33 * (each == gone)) for each in views]
            assert session_rank(full, session_id) == session_rank(rest, session_id)
    # However the ranks are loaded, the session stays unless its own has much more than another.
    loaded = [replace(each, num_requests=load) for each, load in zip(views, loads, strict=False)]
    least = min(each.num_requests for each in loaded)
    its_load = next(each.num_requests for each in loaded if each.rank == home)
    assert (session_rank(loaded, session_id) == home) == (its_load - least <= 32 or its_load <= 1.1 * least)
