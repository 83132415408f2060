"""What a key may ask for, on a clock of the test's."""

from __future__ import annotations

from typing import Any

import pytest

from app.api.access.limits import Allowance, KeyLimits
from app.errors import RateLimitError


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def allowance(clock: Clock, num_ingresses: int = 1, **limits: Any) -> Allowance:
    return Allowance("alice", KeyLimits(**limits), num_ingresses, clock)


def refusal(of: Allowance) -> RateLimitError:
    with pytest.raises(RateLimitError) as error:
        of.enter()
    return error.value


def test_without_limits_there_are_none(clock: Clock) -> None:
    free = allowance(clock)
    for _ in range(10_000):
        free.enter()
        free.charge(10**6)


def test_requests_per_minute(clock: Clock) -> None:
    of = allowance(clock, requests_per_minute=60)
    for _ in range(60):
        of.enter()
        of.leave()
    error = refusal(of)
    assert error.retry_after_s == 1
    assert str(error) == "key 'alice': requests_per_minute = 60, and they are used up; come again in 1 s"
    clock.now += 1
    of.enter()
    refusal(of)
    clock.now += 3600  # no more than a minute's is saved up
    for _ in range(60):
        of.enter()
    refusal(of)


def test_each_ingress_grants_its_share(clock: Clock) -> None:
    rate = allowance(clock, 3, requests_per_minute=6)
    rate.enter()
    rate.enter()
    assert refusal(rate).retry_after_s == 30
    assert "(3 ingresses grant an equal share each)" in str(refusal(rate))
    clock.now += 30
    rate.enter()
    places = allowance(clock, 3, concurrent_requests=7)
    places.enter()
    places.enter()
    assert "concurrent_requests = 7" in str(refusal(places))


def test_a_share_of_less_than_one_request(clock: Clock) -> None:
    of = allowance(clock, 4, requests_per_minute=1, concurrent_requests=1)
    of.enter()
    of.leave()
    assert refusal(of).retry_after_s == 240
    clock.now += 240
    of.enter()


def test_concurrent_requests(clock: Clock) -> None:
    of = allowance(clock, concurrent_requests=2)
    of.enter()
    of.enter()
    assert "concurrent_requests = 2, and that many are being answered; come again in 1 s" in str(refusal(of))
    of.leave()
    of.enter()
    refusal(of)


def test_tokens_may_be_owed_and_are_waited_for(clock: Clock) -> None:
    of = allowance(clock, tokens_per_minute=600)
    of.enter()
    of.charge(1000)  # more than a minute has: nothing says so before it is used
    error = refusal(of)
    assert error.retry_after_s == 41  # until there is one
    assert "tokens_per_minute = 600, and they are used up" in str(error)
    clock.now += 41
    of.enter()
    of.charge(10)
    with pytest.raises(RateLimitError):
        of.check_tokens()


def test_a_refused_request_counts_for_no_limit(clock: Clock) -> None:
    of = allowance(clock, requests_per_minute=2, concurrent_requests=1)
    of.enter()
    for _ in range(5):
        refusal(of)
    of.leave()
    of.enter()
    of.leave()
    assert "requests_per_minute" in str(refusal(of))
