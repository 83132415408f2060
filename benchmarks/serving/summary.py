"""From single requests to the figures of a run, and from the runs of several rounds to their medians."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np


@dataclass(frozen=True)
class Reply:
    """One answered request, as its client saw it.

    Attributes:
        text: the answer.
        ttft_s: seconds from sending the request to the first content.
        latency_s: seconds from sending the request to the end of the answer.
        prompt_tokens, cached_tokens: from the answer's usage; the cached ones are included in the prompt's.
        rank: the DP rank that answered.
    """

    text: str
    ttft_s: float
    latency_s: float
    prompt_tokens: int
    cached_tokens: int
    rank: int


@dataclass(frozen=True)
class Summary:
    """The figures of one policy. Times in seconds; percentiles interpolate linearly, as numpy's do."""

    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    latency_mean_s: float
    cached_token_fraction: float
    requests_per_s: float
    duration_s: float
    num_requests: int
    prompt_tokens: int
    requests_by_rank: Mapping[int, int]


def summarize(replies: Sequence[Reply], duration_s: float) -> Summary:
    """The figures of one run, of at least one request, that took `duration_s`."""
    ttfts = [reply.ttft_s for reply in replies]
    p50, p99 = np.percentile(ttfts, [50, 99])
    prompt_tokens = sum(reply.prompt_tokens for reply in replies)
    return Summary(
        ttft_mean_s=fmean(ttfts),
        ttft_p50_s=float(p50),
        ttft_p99_s=float(p99),
        latency_mean_s=fmean(reply.latency_s for reply in replies),
        cached_token_fraction=sum(reply.cached_tokens for reply in replies) / prompt_tokens,
        requests_per_s=len(replies) / duration_s,
        duration_s=duration_s,
        num_requests=len(replies),
        prompt_tokens=prompt_tokens,
        requests_by_rank=dict(sorted(Counter(reply.rank for reply in replies).items())),
    )


def median_summary(rounds: Sequence[Summary]) -> Summary:
    """Each measured figure's median over `rounds`; counts are those of all rounds together."""

    def middle(name: str) -> float:
        return float(median(getattr(each, name) for each in rounds))

    by_rank: Counter[int] = Counter()
    for each in rounds:
        by_rank.update(each.requests_by_rank)
    return Summary(
        ttft_mean_s=middle("ttft_mean_s"),
        ttft_p50_s=middle("ttft_p50_s"),
        ttft_p99_s=middle("ttft_p99_s"),
        latency_mean_s=middle("latency_mean_s"),
        cached_token_fraction=middle("cached_token_fraction"),
        requests_per_s=middle("requests_per_s"),
        duration_s=middle("duration_s"),
        num_requests=sum(each.num_requests for each in rounds),
        prompt_tokens=sum(each.prompt_tokens for each in rounds),
        requests_by_rank=dict(sorted(by_rank.items())),
    )


def table(summaries: Mapping[str, Summary]) -> str:
    """The figures by policy, one line each."""
    head = ("policy", "ttft mean s", "p50 s", "p99 s", "cached", "requests/s", "requests by rank")
    rows = [head, *(_row(name, summary) for name, summary in summaries.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _row(name: str, summary: Summary) -> tuple[str, ...]:
    return (
        name,
        f"{summary.ttft_mean_s:.3f}",
        f"{summary.ttft_p50_s:.3f}",
        f"{summary.ttft_p99_s:.3f}",
        f"{summary.cached_token_fraction:.1%}",
        f"{summary.requests_per_s:.2f}",
        " ".join(str(count) for count in summary.requests_by_rank.values()),
    )
