"""How long ranks keep what isn't used, and what their evictions cost."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from app.routing.prices.cache_pressure import CacheFill, CachePressure

BOTH = slice(2)


def fill(removed: tuple[int, int], held: tuple[int, int] = (1000, 1000)) -> CacheFill:
    return CacheFill(np.array([1000.0, 1000.0]), np.array(held, np.float64), np.array(removed, np.float64))


def observe(pressure: CachePressure, now: float, state: CacheFill) -> list[float]:
    kept_s: list[float] = pressure.observe(BOTH, 2, state, now).tolist()
    return kept_s


def test_a_full_rank_keeps_a_block_until_as_many_have_come_as_it_holds() -> None:
    pressure = CachePressure()
    for second in range(100):
        kept_s = observe(pressure, float(second), fill((10 * (second + 1), 2 * (second + 1))))
    assert kept_s == pytest.approx([100, 500], rel=0.1)


def test_a_rank_with_room_and_one_that_has_evicted_nothing_keep_everything() -> None:
    pressure = CachePressure()
    for second in range(10):
        kept_s = observe(pressure, float(second), fill((10 * (second + 1), 0), held=(900, 1000)))
    assert kept_s == [inf, inf]


def test_a_rank_that_evicts_no_more_keeps_things_longer_and_longer() -> None:
    pressure = CachePressure()
    for second in range(100):
        before = observe(pressure, float(second), fill((10 * (second + 1),) * 2))
    after = observe(pressure, 1000.0, fill((1000, 2000)))
    assert after[0] > 5 * before[0]


def test_the_price_is_what_was_asked_again_of_what_came_drawn_to_the_mean() -> None:
    pressure = CachePressure()
    capacity = np.array([1000.0, 1000.0])
    assert pressure.prices(BOTH, 2, capacity).tolist() == [0, 0]
    pressure.add_sent(0, 1000)
    pressure.add_lost(0, 500)
    pressure.add_sent(1, 1000)
    # A mean of a quarter, with the weight of 2,000 tokens.
    assert pressure.prices(BOTH, 2, capacity).tolist() == pytest.approx([1000 / 3000, 500 / 3000])
    pressure.drop(0)
    assert pressure.prices(BOTH, 2, capacity).tolist() == [0, 0]
