"""One rank's prefill rate, from what it reports."""

from __future__ import annotations

import pytest

from app.routing.load.prefill_rate import MIN_TOKENS, WINDOW_TOKENS, PrefillRate


def test_rate_follows_the_recent_past() -> None:
    rate = PrefillRate()
    tokens = busy_us = 0
    for speed in (1000, 4000):
        while tokens < 2 * WINDOW_TOKENS * speed // 1000:
            tokens += 100
            busy_us += 100 * 1_000_000 // speed
            rate.observe(tokens, busy_us)
    assert rate.tokens_per_s == pytest.approx(4000.0, rel=1e-3)


def test_a_few_tokens_are_no_measurement() -> None:
    rate = PrefillRate()
    rate.observe(MIN_TOKENS - 1, 1_000_000)
    assert rate.tokens_per_s is None
    rate.observe(MIN_TOKENS, 1_000_000)
    assert rate.tokens_per_s == pytest.approx(MIN_TOKENS)


def test_tokens_without_time_are_no_measurement() -> None:
    rate = PrefillRate()
    rate.observe(10_000, 0)
    assert rate.tokens_per_s is None


def test_counters_that_went_back_start_a_new_measurement() -> None:
    rate = PrefillRate()
    rate.observe(50_000, 1_000_000)
    rate.observe(1000, 1_000_000)
    assert rate.tokens_per_s == pytest.approx(1000.0)
