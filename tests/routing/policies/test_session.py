"""`session`: a session's rank stays its own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.routing.policies.rendezvous import rendezvous_weights
from app.routing.rank_view import RankView
from tests.support.routing.views import FEW_REQUESTS, VIEWS, choose, new_view, with_requests


def session_rank(views: Sequence[RankView], session_id: str) -> int:
    return choose("session", views, session_id=session_id).rank


@pytest.mark.parametrize(
    ("own", "least", "passed_over"),
    [(32, 0, False), (33, 0, True), (43, 10, True), (350, 320, False), (353, 320, True), (366, 333, False)],
)
def test_overloaded_is_over_32_requests_more_and_over_1_1_times_as_many(
    own: int, least: int, passed_over: bool
) -> None:
    home = next(str(i) for i in range(99) if session_rank([new_view(0), new_view(1)], str(i)) == 0)
    views = [new_view(0, cached_tokens=900, num_requests=own), new_view(1, num_requests=least)]
    assert session_rank(views, home) == int(passed_over)


def test_a_sessions_place_is_the_same_in_every_process() -> None:
    assert rendezvous_weights("user-7", 4)[3] == 0x6C3E8AB5CE5CABC6
    assert rendezvous_weights("user-7", 1024)[:4].tolist() == rendezvous_weights("user-7", 4).tolist()
    views = [new_view(rank) for rank in range(8)]
    assert [session_rank(views, f"user-{i}") for i in range(8)] == [3, 0, 0, 1, 2, 2, 5, 7]


def test_a_session_stays_whatever_the_others_hold() -> None:
    ranks = range(4)
    home = session_rank([new_view(rank) for rank in ranks], "a")
    views = [new_view(rank, cached_tokens=900 * (rank != home), num_requests=9) for rank in ranks]
    assert session_rank(views, "a") == home


def test_without_a_session_it_is_the_default_policy_that_says_so() -> None:
    views = [new_view(0), new_view(1, cached_tokens=600)]
    choice, default = (choose(policy, views, 1000, 400.0) for policy in ("session", "predicted_ttft"))
    assert (choice.deferred_to, default.deferred_to) == ("predicted_ttft", None)
    assert (choice.rank, choice.predicted_ttft_s) == (default.rank, default.predicted_ttft_s)
    assert choice.costs.tolist() == default.costs.tolist()
    assert choose("session", views, 1000, 400.0, session_id="a").deferred_to is None


@given(views=VIEWS, session_id=st.text(max_size=8), loads=st.lists(FEW_REQUESTS, min_size=8, max_size=8))
def test_a_session_moves_only_when_its_own_rank_goes_or_is_overloaded(
    views: list[RankView], session_id: str, loads: list[int]
) -> None:
    views = [with_requests(each, 5) for each in views]
    home = session_rank(views, session_id)
    for gone in views:
        rest = [each for each in views if each != gone]
        if gone.rank != home:
            assert session_rank(rest, session_id) == home
        elif rest:
            # An overloaded home is as one that is gone.
            full = [with_requests(each, 5 + 33 * (each == gone)) for each in views]
            assert session_rank(full, session_id) == session_rank(rest, session_id)
    # However the ranks are loaded, the session stays unless its own has much more than another.
    loaded = [with_requests(each, load) for each, load in zip(views, loads, strict=False)]
    requests = {each.rank: each.counts.num_requests for each in loaded}
    least = min(requests.values())
    stays = requests[home] - least <= 32 or requests[home] <= 1.1 * least
    assert (session_rank(loaded, session_id) == home) == stays
