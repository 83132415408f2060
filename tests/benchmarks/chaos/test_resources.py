"""Whether what a process holds grows."""

from __future__ import annotations

import os

import numpy as np
import pytest

from benchmarks.chaos.resources import Sample, growth, slope, take_sample


def samples(memory_kib: list[float], files: int = 20) -> list[Sample]:
    return [Sample(2.0 * place, int(memory), files, 9) for place, memory in enumerate(memory_kib)]


def test_the_slope_of_a_straight_line() -> None:
    line = slope([0, 30, 60, 120], [10, 20, 30, 50])
    assert line.per_minute == pytest.approx(20)
    assert line.error == pytest.approx(0, abs=1e-9)
    assert line.exceeds(19)
    assert not line.exceeds(21)


def test_noise_is_no_growth_and_growth_is_found_in_noise() -> None:
    noise = np.random.default_rng(1).normal(0, 4000, 500)
    flat, grows = (
        growth("DPRank 1", samples(list(100_000 + noise + by * np.arange(500))), 0.0) for by in (0, 40)
    )
    assert flat is not None
    assert grows is not None
    assert flat.violations() == []
    assert grows.slopes["memory_kib"].per_minute == pytest.approx(1200, rel=0.2)
    (violation,) = grows.violations()
    assert violation.startswith("DPRank 1: memory_kib +")


def test_file_descriptors_that_leak_are_found() -> None:
    leaking = [Sample(2.0 * place, 100, 20 + place // 30, 9) for place in range(500)]
    found = growth("Router 1", leaking, 0.0)
    assert found is not None
    (violation,) = found.violations()
    assert "file_descriptors +1.00 a minute" in violation


def test_the_beginning_of_a_process_and_of_the_run_are_left_out() -> None:
    filling = [1000.0 * min(place, 60) for place in range(300)]
    found = growth("DPRank 1", samples(filling), 0.0)
    assert found is not None
    assert found.seconds == pytest.approx(598 - 120)
    assert found.violations() == []
    late = growth("DPRank 1", samples(filling), since=250.0)
    assert late is not None
    assert late.seconds == pytest.approx(598 - 250)


def test_a_process_that_lived_shortly_is_shown_but_not_judged() -> None:
    found = growth("DPRank 1", samples([1000.0 * place for place in range(100)]), 0.0)
    assert found is not None
    assert found.slopes == {}
    assert growth("DPRank 1", samples([1.0] * 10), 0.0) is None


def test_a_sample_of_this_process() -> None:
    sample = take_sample(os.getpid())
    assert sample is not None
    assert sample.memory_kib > 1000
    assert sample.file_descriptors > 2
    assert sample.threads >= 1
    assert take_sample(2**22 + 1) is None
