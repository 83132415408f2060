"""Columns say what the views say."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given

from app.routing.rank_view import ROWS, UNKNOWN, RankView, RankViews
from tests.support.routing.views import VIEWS


@given(views=VIEWS)
def test_columns_are_the_same_views(views: list[RankView]) -> None:
    columns = RankViews.of(views)
    assert list(columns) == views
    assert [columns[position] for position in range(len(columns))] == views
    assert columns[1:] == views[1:]
    assert list(columns.of_ranks({each.rank for each in views[1:]})) == views[1:]


@given(views=VIEWS)
def test_a_row_has_one_count_of_every_rank(views: list[RankView]) -> None:
    counts = RankViews.of(views).counts
    assert counts.shape == (len(UNKNOWN), len(views))
    assert counts[ROWS.waiting_tokens].tolist() == [each.counts.waiting_tokens for each in views]
    assert counts[ROWS.num_requests].tolist() == [each.counts.num_requests for each in views]
    assert counts[ROWS.release_s].tolist() == [each.counts.release_s for each in views]


@given(views=VIEWS)
def test_one_rate_for_all_ranks_is_as_the_same_rate_for_each(views: list[RankView]) -> None:
    columns = RankViews.of([replace(each, prefill_rate=700.0) for each in views])
    alike = replace(columns, prefill_rate=700.0)
    assert list(alike) == list(columns)
    assert list(alike.of_ranks({views[0].rank})) == [columns[0]]
