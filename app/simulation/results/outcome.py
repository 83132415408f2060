"""What became of the requests, and its figures."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from app.routing.misses.miss import Reason
from app.simulation.results.classes import ClassFigures, RequestClasses, figures_by_class
from app.simulation.traces.request import SimulatedRequest


@dataclass(frozen=True)
class Figures:
    """One run in numbers. Percentiles interpolate linearly, as numpy's do.

    Attributes:
        hit_rate: prompt tokens that came from a cache, of all prompt tokens.
        ttft_mean_s, ttft_p50_s, ttft_p90_s, ttft_p99_s: time to first token in seconds.
        imbalance: prompt tokens computed by the rank that computed most, over the mean of the ranks.
        requests_per_s: requests that the simulator handled per second of real time.
        choose_us: microseconds of real time that one decision took, on average.
        prediction_error_s: predicted less actual time to first token, without its sign, on average; None
            where nothing was predicted.
        missed_shares: of the prompt tokens that weren't cached, the share of each reason.
        classes: the figures of each class of requests.
    """

    hit_rate: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    imbalance: float
    requests_per_s: float
    choose_us: float
    prediction_error_s: float | None
    missed_shares: Mapping[str, float]
    classes: Mapping[str, ClassFigures]


@dataclass
class Outcome:
    """Every request by its position in the trace; the simulator writes it.

    Attributes:
        num_ranks: ranks that there were.
        arrivals_s, prompt_tokens, classes: the requests' own.
        ranks: the rank that each was sent to.
        predicted_ttfts_s: seconds to its first token, as predicted for that rank; nan where it wasn't.
        ttfts_s: seconds to its first token; nan until it came.
        cached_tokens: prompt tokens that its rank needn't compute.
        missed_tokens: prompt tokens that it had to compute, by reason.
        choose_s, wall_s: seconds of real time, for all decisions and for everything.
    """

    num_ranks: int
    arrivals_s: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: array[int] = field(default_factory=lambda: array("q"))
    classes: list[str] = field(default_factory=list)
    ranks: array[int] = field(default_factory=lambda: array("q"))
    predicted_ttfts_s: array[float] = field(default_factory=lambda: array("d"))
    ttfts_s: array[float] = field(default_factory=lambda: array("d"))
    cached_tokens: array[int] = field(default_factory=lambda: array("q"))
    missed_tokens: Counter[Reason] = field(default_factory=Counter)
    choose_s: float = 0.0
    wall_s: float = 0.0
    _request_classes: RequestClasses = field(default_factory=RequestClasses)

    def add(self, request: SimulatedRequest, rank: int, predicted_ttft_s: float = math.nan) -> None:
        """Record the next request, where it went, and how soon its first token should come."""
        self.arrivals_s.append(request.arrival_s)
        self.prompt_tokens.append(request.num_tokens)
        self.classes.append(self._request_classes.of(request))
        self.ranks.append(rank)
        self.predicted_ttfts_s.append(predicted_ttft_s)
        self.ttfts_s.append(math.nan)
        self.cached_tokens.append(0)

    def record_first_token(self, position: int, moment: float, cached_tokens: int) -> None:
        """Record when a request's first token comes. Once for each."""
        assert math.isnan(self.ttfts_s[position]), f"request {position} has its first token already"
        self.ttfts_s[position] = moment - self.arrivals_s[position]
        self.cached_tokens[position] = cached_tokens

    def figures(self) -> Figures:
        """The run, of at least one request, in numbers."""
        ttfts = np.asarray(self.ttfts_s)
        assert not np.isnan(ttfts).any(), "a request has no first token"
        p50, p90, p99 = np.percentile(ttfts, [50, 90, 99])
        prompt, cached = np.asarray(self.prompt_tokens), np.asarray(self.cached_tokens)
        error_s = float(np.abs(np.asarray(self.predicted_ttfts_s) - ttfts).mean())
        by_rank = np.bincount(np.asarray(self.ranks), weights=prompt - cached, minlength=self.num_ranks)
        return Figures(
            hit_rate=float(cached.sum() / prompt.sum()),
            ttft_mean_s=float(ttfts.mean()),
            ttft_p50_s=float(p50),
            ttft_p90_s=float(p90),
            ttft_p99_s=float(p99),
            imbalance=float(by_rank.max() / by_rank.mean()),
            requests_per_s=len(ttfts) / self.wall_s,
            choose_us=self.choose_s / len(ttfts) * 1e6,
            prediction_error_s=None if math.isnan(error_s) else error_s,
            missed_shares={
                reason: tokens / max(1, self.missed_tokens.total())
                for reason, tokens in self.missed_tokens.items()
            },
            classes=figures_by_class(self.classes, prompt, cached, ttfts),
        )
