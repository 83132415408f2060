"""The load of a worker's rank, from its reports and our own requests, on a clock of the test's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from app.engine.remote.load import REPORTED_AFTER_S, STALE_S, RemoteLoad
from app.events.schema import LoadStat

IDLE = LoadStat(0, 0, 0, 1000, 0, 0, 0, 8, 0, 0)


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def load(clock: Clock) -> RemoteLoad:
    return RemoteLoad(5, clock=clock)


def counts(load: RemoteLoad) -> tuple[int, int, int]:
    """Running, waiting, uncached tokens that wait."""
    stat = load.stat()
    return stat.num_running_reqs, stat.num_waiting_reqs, stat.num_waiting_uncached_tokens


def test_without_reports_our_own_requests_are_all(load: RemoteLoad) -> None:
    load.set_capacity(640)
    first = load.add("a", 100, 60, 1)
    second = load.add("b", 50, 50, 3)
    assert counts(load) == (0, 4, 110)
    load.first_token(first, 40)
    stat = load.stat()
    assert counts(load) == (1, 3, 50)
    assert (stat.dp_rank, stat.num_tokens, stat.num_total_tokens) == (5, 100, 150)
    assert stat.max_total_num_tokens == 640
    for each in (first, second, second):
        load.remove(each)
    assert counts(load) == (0, 0, 0)
    assert load.num_requests == 0


def test_a_request_is_added_to_reports_until_one_has_it(load: RemoteLoad, clock: Clock) -> None:
    load.report(LoadStat(2, 1, 300, 1000, 0, 70, 350, 8, 0, 0))
    assert counts(load) == (2, 1, 70)
    load.add("a", 100, 60, 1)
    assert counts(load) == (2, 2, 130)
    load.report(LoadStat(2, 1, 300, 1000, 0, 70, 350, 8, 0, 0))
    assert counts(load) == (2, 2, 130), "it may have been sent before the request came"
    clock.now += REPORTED_AFTER_S
    load.report(LoadStat(3, 1, 400, 1000, 0, 70, 450, 8, 0, 0))
    assert counts(load) == (3, 1, 70)


def test_an_acknowledged_request_is_in_the_report(load: RemoteLoad) -> None:
    load.add("a", 100, 60, 1)
    load.report(LoadStat(0, 1, 0, 1000, 0, 60, 100, 8, 0, 0))
    assert counts(load) == (0, 2, 120)
    load.acknowledge(["a", "of another client"])
    assert counts(load) == (0, 1, 60)


def test_old_and_forgotten_reports_say_nothing(load: RemoteLoad, clock: Clock) -> None:
    load.add("a", 100, 60, 1)
    clock.now += 1
    load.report(LoadStat(9, 9, 900, 1000, 0, 900, 990, 8, 0, 0))
    assert counts(load) == (9, 9, 900)
    clock.now += STALE_S
    assert counts(load) == (0, 1, 60)
    load.report(LoadStat(9, 9, 900, 1000, 0, 900, 990, 8, 0, 0))
    load.forget_reports()
    assert counts(load) == (0, 1, 60)


def test_a_report_that_knows_no_waiting_tokens_leaves_ours(load: RemoteLoad, clock: Clock) -> None:
    load.add("a", 100, 60, 1)
    clock.now += 1
    load.report(LoadStat(0, 3, 0, 1000, 0, 0, 0, 8, 0, 0))
    assert counts(load) == (0, 3, 60)


def test_the_rate_is_measured_while_a_request_waits(load: RemoteLoad, clock: Clock) -> None:
    first = load.add("a", 100, 100, 1)
    clock.now += 1
    second = load.add("b", 50, 50, 1)
    clock.now += 1
    load.first_token(first, 0)
    clock.now += 0.5
    load.first_token(second, 10)
    clock.now += 50
    third = load.add("c", 10, 10, 1)
    clock.now += 3
    load.remove(third)  # aborted: what it took belongs to no token
    stat = load.stat()
    assert (stat.total_prefill_uncached_tokens, stat.total_prefill_busy_us) == (140, 2_500_000)


def test_a_workers_own_rate_counts_on_over_its_restart(load: RemoteLoad, clock: Clock) -> None:
    def report(tokens: int, busy_us: int) -> tuple[int, int]:
        load.report(LoadStat(0, 0, 0, 1000, 0, 0, 0, 8, tokens, busy_us))
        stat = load.stat()
        return stat.total_prefill_uncached_tokens, stat.total_prefill_busy_us

    assert report(5_000, 70_000) == (0, 0)
    assert report(5_100, 71_000) == (100, 1_000)
    assert report(40, 500) == (100, 1_000), "another process"
    assert report(60, 900) == (120, 1_400)
    request = load.add("a", 100, 100, 1)
    clock.now += 1
    load.first_token(request, 0)
    assert report(60, 900) == (120, 1_400)
