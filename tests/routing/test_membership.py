"""Membership: the same snapshot until something changes, and what it says of the ranks."""

from __future__ import annotations

from typing import cast, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.events.following.sync_status import Trust
from app.routing.membership import Membership, RoutableRanks
from app.routing.rank_sets import ranks_in

TRUSTS: st.SearchStrategy[Trust] = st.sampled_from(get_args(Trust))


@pytest.mark.parametrize("bits", [0, 1, 0b1010, 1 << 1023 | 1])
def test_ranks_of_a_bit_set(bits: int) -> None:
    ranks = ranks_in(bits).tolist()
    assert ranks == sorted(ranks)
    assert sum(1 << rank for rank in ranks) == bits


@given(trusts=st.dictionaries(st.integers(0, 70), TRUSTS, min_size=1), data=st.data())
def test_positions_pick_the_ranks_of_a_bit_set(trusts: dict[int, Trust], data: st.DataObject) -> None:
    routable = RoutableRanks(trusts)
    some = data.draw(st.sets(st.sampled_from(sorted(trusts)), min_size=1))
    picked = routable.ranks[routable.positions(sum(1 << rank for rank in some))]
    assert np.ravel(picked).tolist() == sorted(some)


@given(trusts=st.dictionaries(st.integers(0, 70), TRUSTS))
def test_a_snapshot_is_the_mapping_it_was_made_of(trusts: dict[int, Trust]) -> None:
    routable = RoutableRanks(trusts)
    assert routable == trusts
    assert routable.ranks.tolist() == list(routable) == sorted(trusts)
    assert list(routable.trusts) == [trusts[rank] for rank in routable]
    credited = {rank for rank in trusts if trusts[rank] in ("exact", "partial")}
    assert routable.credited == sum(1 << rank for rank in credited)
    assert routable.size == max(trusts, default=-1) + 1
    assert np.arange(routable.size)[routable.rows].tolist() == sorted(trusts)


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.none() | st.tuples(st.just(True), TRUSTS) | st.tuples(st.just(False), st.sampled_from("ab")),
    )
)
"""Of a rank: it goes, it can take requests with this trust, or it can't for this reason."""


@given(changes=CHANGES)
def test_it_follows_every_change_and_leaves_old_snapshots_alone(
    changes: list[tuple[int, tuple[bool, str] | None]],
) -> None:
    membership, expected = Membership(), dict[int, tuple[bool, str]]()
    for rank, change in changes:
        before, expected_before = membership.routable, dict(expected)
        expected.pop(rank, None)
        match change:
            case None:
                membership.remove(rank)
            case True, trust:
                membership.set(rank, cast(Trust, trust))
            case False, reason:
                membership.set_unavailable(rank, reason)
        if change is not None:
            expected[rank] = change
        assert content(membership.routable) == expected
        assert content(before) == expected_before
        assert (membership.routable is before) == (expected == expected_before)
        assert list(membership.routable.unavailable) == sorted(membership.routable.unavailable)


def content(ranks: RoutableRanks) -> dict[int, tuple[bool, str]]:
    return {rank: (True, trust) for rank, trust in ranks.items()} | {
        rank: (False, reason) for rank, reason in ranks.unavailable.items()
    }
