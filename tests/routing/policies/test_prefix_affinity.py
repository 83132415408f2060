"""`prefix_affinity`: the longest prefix where not overloaded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.routing.rank_view import RankView
from tests.support.routing.views import FEW_REQUESTS, VIEWS, choose, new_view, with_requests


def test_prefix_affinity_takes_the_longest_prefix_then_the_least_loaded() -> None:
    views = [
        new_view(0, cached_tokens=300),
        new_view(1, cached_tokens=400, num_requests=9),
        new_view(2),
        new_view(3),
    ]
    assert choose("prefix_affinity", views).rank == 1
    assert choose("prefix_affinity", views).costs.tolist() == [700.0, 600.0, 1000.0, 1000.0]
    alike = [new_view(0, cached_tokens=400, num_requests=2), new_view(1, cached_tokens=400, num_requests=1)]
    assert choose("prefix_affinity", alike).rank == 1
    assert choose("prefix_affinity", [new_view(0, num_requests=1), new_view(1)]).rank == 1


@pytest.mark.parametrize(
    ("holder", "least", "passed_over"),
    [(32, 0, False), (33, 0, True), (43, 10, True), (350, 320, False), (353, 320, True), (366, 333, False)],
)
def test_overloaded_is_over_32_requests_more_and_over_1_1_times_as_many(
    holder: int, least: int, passed_over: bool
) -> None:
    views = [new_view(0, cached_tokens=900, num_requests=holder), new_view(1, num_requests=least)]
    assert choose("prefix_affinity", views).rank == int(passed_over)


@given(views=VIEWS, loads=st.lists(FEW_REQUESTS, min_size=8, max_size=8))
def test_prefix_affinity_passes_over_a_longer_prefix_only_where_overloaded(
    views: list[RankView], loads: list[int]
) -> None:
    views = [with_requests(each, load) for each, load in zip(views, loads, strict=False)]
    choice = choose("prefix_affinity", views)
    chosen = next(each for each in views if each.rank == choice.rank)
    requests = chosen.counts.num_requests
    least = min(each.counts.num_requests for each in views)
    assert requests - least <= 32 or requests <= 1.1 * least
    for each in views:
        if (each.cached_tokens, -each.counts.num_requests) > (chosen.cached_tokens, -requests):
            assert each.counts.num_requests - least > 32
            assert each.counts.num_requests > 1.1 * least
