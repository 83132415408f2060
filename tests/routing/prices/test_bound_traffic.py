"""Requests that only one rank has the prefix of."""

from __future__ import annotations

import pytest

from app.routing.prices.bound_traffic import WINDOW_S, BoundTraffic

ALL = slice(4)


def test_ranks_that_differ_by_chance_alone_are_alike() -> None:
    traffic = BoundTraffic()
    traffic.fade(0.0)
    for rank, count in enumerate((9, 11, 10, 10)):
        for _ in range(count):
            traffic.add(rank, 1000)
    per_s, tokens = traffic.rates(ALL, 4)
    assert per_s.tolist() == pytest.approx([10 / WINDOW_S] * 4)
    assert tokens.tolist() == pytest.approx([1000] * 4)


def test_a_rank_that_most_are_bound_to_stands_out() -> None:
    traffic = BoundTraffic()
    traffic.fade(0.0)
    for _ in range(400):
        traffic.add(2, 512)
    per_s, _ = traffic.rates(ALL, 4)
    assert per_s[2] > 0.95 * 400 / WINDOW_S
    assert per_s[[0, 1, 3]].tolist() == [0, 0, 0]
    traffic.fade(WINDOW_S)
    assert traffic.rates(ALL, 4)[0][2] < per_s[2] / 2.5
    traffic.drop(2)
    assert traffic.rates(ALL, 4)[0].tolist() == [0, 0, 0, 0]


def test_work_counts_wherever_it_goes() -> None:
    traffic = BoundTraffic()
    traffic.fade(0.0)
    traffic.add_work(8000)
    assert traffic.tokens_per_s == 8000 / WINDOW_S
