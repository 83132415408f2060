"""`random` and `power_of_two`: every rank or pair has the same share of the draws."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.routing.rank_view import RankView
from tests.support.routing.views import VIEWS, choose, new_view


def test_random_draws_every_rank_for_as_large_a_part_of_the_draws() -> None:
    views = [new_view(0, num_requests=9), new_view(1), new_view(2, cached_tokens=900), new_view(3)]
    ranks = [choose("random", views, draw=draw).rank for draw in (0.0, 0.24, 0.25, 0.6, 0.9999)]
    assert ranks == [0, 0, 1, 2, 3]


def test_power_of_two_draws_every_ordered_pair_for_as_large_a_part_of_the_draws() -> None:
    views = [new_view(rank, num_requests=rank) for rank in range(5)]
    pairs = Counter[tuple[int, int]]()
    for step in range(20):
        costs = choose("power_of_two", views, 10, draw=(step + 0.5) / 20).costs.tolist()
        pairs[costs.index(0.0), costs.index(1.0)] += 1
    # The less loaded is the lower rank here, whichever was drawn first.
    assert pairs == {(low, high): 2 for low in range(5) for high in range(low + 1, 5)}


def test_power_of_two_between_equals_takes_the_one_with_less_work_so_far() -> None:
    views = [new_view(0, assigned_tokens=9), new_view(1)]
    assert {choose("power_of_two", views, 10, draw=draw).rank for draw in (0.1, 0.9)} == {1}


@given(views=VIEWS, draw=st.floats(0, 1, exclude_max=True))
def test_power_of_two_never_takes_the_worse_of_its_two(views: list[RankView], draw: float) -> None:
    choice = choose("power_of_two", views, draw=draw)
    assert sorted(choice.costs) == [0.0, 1.0, *[2.0] * (len(views) - 2)][: len(views)]
    chosen = views[choice.costs.tolist().index(0.0)]
    assert chosen.rank == choice.rank
    if len(views) > 1:
        other = views[choice.costs.tolist().index(1.0)]
        assert _load(chosen) <= _load(other)


def _load(view: RankView) -> tuple[float, float]:
    return view.counts.num_requests, view.counts.assigned_tokens
