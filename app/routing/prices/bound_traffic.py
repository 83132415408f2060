"""How many requests are bound to each rank, and by how much: those whose prefix it alone holds.

    rate_r    requests a second whose longest cached prefix rank r alone holds
    tokens_r  how much more of them it holds than any other rank, on average

A request that finds its rank busy for w seconds waits, or has those tokens computed elsewhere. So it loses

    min(w, g), about w * g / (w + g)         g: tokens_r / prefill rate

Both are sums that fade with time. Rates of ranks that differ by no more than chance makes them differ are
equal: else chance would break every tie between idle ranks, and fill their caches unevenly. So each is drawn
towards the mean, the more the less their variance exceeds that of counts (an estimate of James and Stein's
kind).

Source: W. James, C. Stein, "Estimation with Quadratic Loss", 1961.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from app.routing.prices.columns import Columns
from app.routing.rank_sets import Integers
from app.routing.rank_view import Floats

WINDOW_S: Final = 400.0
"""Seconds over which sums fade to 1 / e."""
COUNT_NOISE: Final = 3.0
"""Variance of a count by chance, relative to its mean: half of it in a fading sum of single requests (whose
squares fade twice as fast), six times that as a conversation's requests come in groups."""


class BoundTraffic:
    """See the module."""

    def __init__(self) -> None:
        self._sums = Columns(2)
        """Requests, and tokens that only the rank holds."""
        self._work = 0.0
        self._now = -np.inf

    def fade(self, now: float) -> None:
        """Let everything before `now`, monotonic seconds, weigh less."""
        kept = np.exp((self._now - now) / WINDOW_S)
        self._sums.values *= kept
        self._work *= kept
        self._now = now

    def add(self, rank: int, tokens: int) -> None:
        """A request is bound to `rank`, which holds so many tokens of it that no other rank does."""
        self._sums.make_room(rank)
        self._sums.values[0, rank] += 1
        self._sums.values[1, rank] += tokens

    def add_work(self, uncached_tokens: int) -> None:
        """A request makes some rank compute this."""
        self._work += uncached_tokens

    def drop(self, rank: int) -> None:
        """`rank` holds nothing any more."""
        self._sums.drop(rank)

    @property
    def tokens_per_s(self) -> float:
        """Uncached prompt tokens of all requests, each second."""
        return self._work / WINDOW_S

    def rates(self, rows: slice | Integers, size: int) -> tuple[Floats, Floats]:
        """Bound requests each second, and their mean tokens by rank."""
        self._sums.make_room(size - 1)
        requests, tokens = self._sums.values[:, rows]
        mean = requests.mean()
        variance = requests.var(ddof=1) if len(requests) > 1 else 0.0
        known = max(0.0, 1 - COUNT_NOISE * mean / variance) if variance else 0.0
        shrunk = mean + known * (requests - mean)
        means = tokens / np.maximum(requests, 1e-9)
        return np.where(requests > 0, shrunk, 0.0) / WINDOW_S, means
