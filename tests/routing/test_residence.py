"""How long requests stay, from what ranks report."""

from __future__ import annotations

from random import Random

import pytest

from app.routing.residence import WINDOW, ReportedResidence, Residence


def test_nobody_has_left_yet() -> None:
    residence = ReportedResidence()
    residence.observe(4, 0, now=0.0)
    residence.observe(4, 0, now=10.0)
    assert residence.stay_s is None
    # As if one request of the other ranks', which stay for 3 s, had been here and gone.
    assert residence.stay_given(3.0) == pytest.approx(4 * 10.0 + 3.0)


def test_it_is_measured_to_within_chance() -> None:
    rng = Random(1)
    residence = ReportedResidence()
    ends: list[float] = []
    for step in range(4000):
        now = step * 0.1
        ends = [end for end in ends if end > now]
        arrived = sum(rng.random() < 0.5 for _ in range(2))
        ends += [now + rng.expovariate(1 / 5.0) for _ in range(arrived)]
        residence.observe(len(ends), 0, now)
        residence.acknowledge(arrived)
    assert residence.stay_s == pytest.approx(5.0, rel=3 / WINDOW**0.5)


def test_what_is_long_ago_counts_for_little() -> None:
    residence = Residence()
    for stay_s, number in ((100.0, 10 * WINDOW), (1.0, 10 * WINDOW)):
        for _ in range(number):
            residence.add(stay_s, 1)
    assert residence.stay_s == pytest.approx(1.0, rel=0.01)


def test_a_request_that_was_never_acknowledged_left_nobody() -> None:
    residence = ReportedResidence()
    for now, present in ((0.0, 1), (1.0, 3), (2.0, 2), (3.0, 2)):
        residence.observe(present, 0, now)
    assert residence.num_left == 1
