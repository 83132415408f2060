"""What load reports say of samples and steps."""

from __future__ import annotations

import math

import pytest

from app.engine.vllm.load_meter import LoadMeter, StepStats


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def new_meter() -> tuple[LoadMeter, Clock]:
    clock = Clock()
    return LoadMeter(3, num_cache_tokens=1000, max_running=2, clock=clock), clock


def test_nothing_is_nothing() -> None:
    meter, _ = new_meter()
    stat = meter.stat()
    assert (stat.num_running_reqs, stat.num_waiting_reqs, stat.num_tokens) == (0, 0, 0)
    assert (stat.dp_rank, stat.max_running_requests, stat.max_total_num_tokens) == (3, 2, 1000)
    assert not meter.is_busy
    assert meter.wait_s == math.inf


def test_an_admitted_sample_waits_until_vllm_says_that_it_runs() -> None:
    meter, clock = new_meter()
    first, second, third = (meter.add(100, cached) for cached in (0, 64, 0))
    stat = meter.stat()
    assert (stat.num_running_reqs, stat.num_waiting_reqs) == (0, 3)
    assert (stat.num_waiting_uncached_tokens, stat.num_total_tokens) == (236, 300)
    clock.now += 1
    meter.step(StepStats(num_running=2, cache_usage=0.2, num_prefill_tokens=136))
    meter.first_token(first)
    meter.first_token(second)
    stat = meter.stat()
    assert (stat.num_running_reqs, stat.num_waiting_reqs) == (2, 1)
    assert (stat.num_tokens, stat.num_total_tokens) == (200, 300)
    assert stat.num_waiting_uncached_tokens == 100
    # vLLM's number still counts one that ended; nothing waits for that.
    meter.remove(first)
    meter.first_token(third)
    assert (meter.stat().num_running_reqs, meter.stat().num_waiting_reqs) == (2, 0)
    meter.remove(second)
    meter.remove(third)
    meter.remove(third)
    assert (meter.stat().num_running_reqs, meter.stat().num_tokens) == (0, 0)


def test_a_long_prompt_is_computed_in_chunks_in_the_order_of_arrival() -> None:
    meter, clock = new_meter()
    meter.add(100, 0)
    meter.add(50, 0)
    for computed, pending in ((64, 86), (64, 22)):
        clock.now += 1
        meter.step(StepStats(2, 0.1, computed, 0))
        assert meter.num_pending_tokens == pending


def test_only_busy_time_is_measured_and_a_mixed_steps_by_its_share() -> None:
    meter, clock = new_meter()
    sample = meter.add(100, 0)
    clock.now += 2
    meter.step(StepStats(1, 0.1, num_prefill_tokens=100))
    meter.first_token(sample)
    clock.now += 5
    meter.step(StepStats(1, 0.1, num_decode_tokens=1))
    other = meter.add(75, 0)
    clock.now += 4
    meter.step(StepStats(2, 0.2, num_prefill_tokens=75, num_decode_tokens=25))
    meter.remove(sample)
    meter.remove(other)
    clock.now += 1000  # idle
    meter.add(10, 0)
    assert meter.wait_s == pytest.approx(10 * 5 / 175)
    clock.now += 1
    meter.step(StepStats(1, 0.1, num_prefill_tokens=10))
    stat = meter.stat()
    assert (stat.total_prefill_uncached_tokens, stat.total_prefill_busy_us) == (185, 6_000_000)


def test_an_aborted_samples_last_step_counts_for_nothing() -> None:
    meter, clock = new_meter()
    meter.remove(meter.add(100, 0))
    clock.now += 1
    meter.step(StepStats(0, 0.0, num_prefill_tokens=100))
    assert meter.stat().total_prefill_uncached_tokens == 0
