"""The figures of the serving benchmark, on known data."""

from __future__ import annotations

import pytest

from benchmarks.serving.summary import Reply, median_summary, summarize


def test_figures_of_a_run() -> None:
    replies = [
        Reply("", ttft_s=n / 100, latency_s=2.0, prompt_tokens=100, cached_tokens=n, rank=n % 2)
        for n in range(1, 101)
    ]
    summary = summarize(replies, duration_s=20.0)
    assert summary.ttft_mean_s == pytest.approx(0.505)
    assert summary.ttft_p50_s == pytest.approx(0.505)
    assert summary.ttft_p99_s == pytest.approx(0.9901)
    assert summary.latency_mean_s == pytest.approx(2.0)
    assert summary.cached_token_fraction == pytest.approx(0.505)
    assert summary.requests_per_s == pytest.approx(5.0)
    assert summary.requests_by_rank == {0: 50, 1: 50}


def test_figures_of_rounds_are_medians_and_counts_are_sums() -> None:
    rounds = [
        summarize([Reply("", ttft_s, ttft_s, 10, 5, rank=0)], duration_s=1.0) for ttft_s in (1.0, 9.0, 2.0)
    ]
    summary = median_summary(rounds)
    assert summary.ttft_mean_s == 2.0
    assert summary.num_requests == 3
    assert summary.requests_by_rank == {0: 3}
