"""What a rank says of its load, from its engine's reports."""

from __future__ import annotations

from typing import Any

import pytest

from app.deployments.autoscaling.load_meter import LoadMeter
from app.deployments.autoscaling.policy import RankLoad
from app.events.schema import LoadStat

IDLE = {
    "num_running_reqs": 0,
    "num_waiting_reqs": 0,
    "num_tokens": 0,
    "max_total_num_tokens": 4096,
    "dp_rank": 0,
    "num_waiting_uncached_tokens": 0,
    "num_total_tokens": 0,
    "max_running_requests": 32,
    "total_prefill_uncached_tokens": 0,
    "total_prefill_busy_us": 0,
}


def load(**changes: Any) -> RankLoad:
    """The load by one report, with a prefill rate of 1,000 tokens/s unless it says another."""
    return LoadMeter(1000.0).observe(LoadStat(**(IDLE | changes)))


def test_an_idle_rank() -> None:
    assert load() == RankLoad()


def test_the_queue_takes_as_long_as_the_measured_rate_makes_it() -> None:
    assert load(num_waiting_reqs=1, num_waiting_uncached_tokens=500).queue_wait_s == 0.5
    measured = {"total_prefill_uncached_tokens": 10_000, "total_prefill_busy_us": 2_000_000}
    busy = load(num_waiting_reqs=1, num_waiting_uncached_tokens=500, **measured)
    assert busy.queue_wait_s == pytest.approx(0.1)
    assert busy.prefill_busy_s == 2.0


def test_the_rate_is_that_of_late() -> None:
    meter = LoadMeter(1000.0)
    fast = {"total_prefill_uncached_tokens": 10**6, "total_prefill_busy_us": 10**6}
    meter.observe(LoadStat(**(IDLE | fast)))
    for step in range(1, 100):
        changes = {
            "total_prefill_uncached_tokens": 10**6 + 1000 * step,
            "total_prefill_busy_us": 10**6 * (step + 1),
            "num_waiting_uncached_tokens": 500,
        }
        last = meter.observe(LoadStat(**(IDLE | changes)))
    assert last.queue_wait_s == pytest.approx(0.5, rel=0.05)


def test_blocks_that_requests_hold_or_wait_for() -> None:
    assert load(num_running_reqs=1, num_tokens=1024, num_total_tokens=1024).usage == 0.25
    assert load(num_running_reqs=1, num_waiting_reqs=1, num_total_tokens=8192).usage == 2.0


def test_places_in_the_batch() -> None:
    full = load(num_running_reqs=32, num_waiting_reqs=16, num_tokens=512, num_total_tokens=768)
    assert (full.usage, full.num_requests) == (1.5, 48)


def test_an_engine_that_has_not_said_its_size() -> None:
    assert load(num_running_reqs=1, max_total_num_tokens=0, max_running_requests=0).usage == 0.0
