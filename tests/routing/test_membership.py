"""Membership: the same snapshot until something changes, and what it says of the ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.routing.membership import Alive, Membership, Trust

TRUSTS: st.SearchStrategy[Trust] = st.sampled_from(["exact", "syncing", "stale"])


@given(trusts=st.dictionaries(st.integers(0, 70), TRUSTS))
def test_a_snapshot_is_the_mapping_it_was_made_of(trusts: dict[int, Trust]) -> None:
    alive = Alive(trusts)
    assert alive == trusts
    assert alive.ranks.tolist() == list(alive) == sorted(trusts)
    assert list(alive.trusts) == [trusts[rank] for rank in alive]
    assert alive.exact == sum(1 << rank for rank in trusts if trusts[rank] == "exact")
    assert alive.size == max(trusts, default=-1) + 1
    assert np.arange(alive.size)[alive.rows].tolist() == sorted(trusts)


CHANGES = st.lists(st.tuples(st.integers(0, 5), st.none() | TRUSTS))


@given(changes=CHANGES)
def test_it_follows_every_change_and_leaves_old_snapshots_alone(
    changes: list[tuple[int, Trust | None]],
) -> None:
    membership, expected = Membership(), dict[int, Trust]()
    for rank, trust in changes:
        before, expected_before = membership.alive, dict(expected)
        if trust is None:
            membership.remove(rank)
            expected.pop(rank, None)
        else:
            membership.set(rank, trust)
            expected[rank] = trust
        assert membership.alive == expected
        assert before == expected_before
        assert (membership.alive is before) == (expected == expected_before)
