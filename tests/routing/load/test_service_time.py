"""What requests take until they leave, from what ranks report."""

from __future__ import annotations

from random import Random

import pytest

from app.events.schema import LoadStat
from app.routing.load.service_time import WINDOW, Occupancy, ReportedServiceTime, ServiceTime


def report(running: int, held_tokens: int = 0) -> LoadStat:
    return LoadStat(running, 0, held_tokens, 1000, 0, 0, held_tokens, 64, 0, 0)


def test_no_request_has_left_yet() -> None:
    service_time = ReportedServiceTime()
    service_time.observe(report(4, 200), now=0.0)
    service_time.observe(report(4, 200), now=10.0)
    assert service_time.mean is None
    # One of another rank's requests is counted as if it had been here and gone.
    assert service_time.mean_with(Occupancy(3.0, 90.0)) == pytest.approx((4 * 10.0 + 3.0, 200 * 10.0 + 90.0))


def test_it_is_measured_to_within_chance() -> None:
    rng = Random(1)
    service_time = ReportedServiceTime()
    ends: list[float] = []
    for step in range(4000):
        now = step * 0.1
        arrived = sum(rng.random() < 0.5 for _ in range(2))
        ends = [end for end in ends if end > now]
        ends += [now + rng.expovariate(1 / 5.0) for _ in range(arrived)]
        service_time.observe(report(len(ends), 7 * len(ends)), now)
        service_time.acknowledge(arrived)
    assert service_time.mean is not None
    assert service_time.mean.request_s == pytest.approx(5.0, rel=3 / WINDOW**0.5)
    assert service_time.mean.token_s == pytest.approx(7 * service_time.mean.request_s)


def test_what_is_long_ago_counts_for_little() -> None:
    service_time = ServiceTime()
    for stay_s, number in ((100.0, 10 * WINDOW), (1.0, 10 * WINDOW)):
        for _ in range(number):
            service_time.add(Occupancy(stay_s, stay_s), 1)
    assert service_time.mean == pytest.approx((1.0, 1.0), rel=0.01)


def test_where_nothing_is_acknowledged_what_is_missing_has_left() -> None:
    service_time = ReportedServiceTime()
    for now, running in ((0.0, 1), (1.0, 3), (2.0, 2), (3.0, 2)):
        service_time.observe(report(running), now)
    assert service_time.mean == pytest.approx((1 + 3 + 2, 0.0))
