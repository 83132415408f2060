"""How many prompts return, and after how long."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from app.routing.prices.return_times import FIRST_RETURNS, ReturnTimes


def test_new_prompts_are_taken_to_return_until_enough_did_not() -> None:
    times = ReturnTimes()
    assert times.share_of_new == 1
    for _ in range(FIRST_RETURNS):
        times.add(is_return=False)
    assert times.share_of_new == 0.5


def test_the_share_that_returns_later_falls_with_the_time_and_is_kept_by_kind() -> None:
    times = ReturnTimes()
    for seconds in (10.0, 20.0, 40.0, 80.0) * 1000:
        times.add(is_return=True)
        times.add_return(seconds, was_return=True)
        times.add(is_return=False)
    new, again = times.later_than(np.array([1.0, 30.0, 1000.0, inf]))
    assert new.tolist() == [0, 0, 0, 0], "none of them has returned"
    assert again.tolist() == pytest.approx([1, 0.5, 0, 0], abs=0.02)


def test_old_counts_fade() -> None:
    times = ReturnTimes()
    for _ in range(100):
        times.add(is_return=False)
    times.fade(100_000)
    times.add_return(1.0, was_return=False)
    times.add(is_return=False)
    assert times.share_of_new == pytest.approx(1)
