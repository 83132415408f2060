"""Which replica a call goes to: near ones first, shared among callers, or the `nth` where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.deployments.nearest_first import in_order


@pytest.mark.parametrize(
    ("by_distance", "first", "nth", "order"),
    [
        (["ab", "", "cd"], 0, 0, "abcd"),
        (["ab", "", "cd"], 1, 0, "badc"),
        (["ab", "", "cde"], 2, 0, "abecd"),
        (["ab", "", "cd"], 0, 1, "bcda"),
        (["ab", "", "cd"], 1, 2, "dcba"),
        (["ab", "", "cd"], 0, 5, "bcda"),
        (["", "", "cd"], 1, 0, "dc"),
        (["a", "", ""], 3, 2, "a"),
        (["", "", ""], 1, 1, ""),
    ],
)
def test_the_order_of_replicas(by_distance: Sequence[str], first: int, nth: int, order: str) -> None:
    assert "".join(in_order(by_distance, first, nth)) == order
