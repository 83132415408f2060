"""The prefill rates of all ranks, as a choice reckons with them."""

from __future__ import annotations

from bisect import bisect_left, insort
from math import isnan

import numpy as np

from app.routing.load.prefill_rate import PrefillRate
from app.routing.membership import RoutableRanks
from app.routing.rank_view import Floats

RATE_NOISE = 0.5
"""Prefill rates this close to their median, relative to it, count as equal: see `PrefillRates.usable`."""


class PrefillRates:
    """Each rank's measurement, and their median.

    Args:
        initial: tokens per second of every rank until one has been measured anywhere.
    """

    def __init__(self, initial: float) -> None:
        self._initial = initial
        self._measurements: dict[int, PrefillRate] = {}
        self._measured = np.full(8, np.nan)
        """Of each rank; nan where there is none."""
        self._ascending: list[float] = []
        """The measured ones."""

    def observe(self, rank: int, total_tokens: int, total_busy_us: int) -> None:
        """Take the counters of a rank's report."""
        measurement = self._measurements.setdefault(rank, PrefillRate())
        measurement.observe(total_tokens, total_busy_us)
        self._set(rank, measurement.tokens_per_s)

    def drop(self, rank: int) -> None:
        """Forget what was measured there."""
        if self._measurements.pop(rank, None) is not None:
            self._set(rank, None)

    def usable(self, routable: RoutableRanks) -> Floats | float:
        """Uncached prompt tokens per second of each rank, always above 0; one number where all are alike.

        The ranks of one deployment are meant to be equal, and a measurement mustn't make one of them win
        every tie. It errs by more than noise: a step costs something whatever its tokens, so a rank that
        computes short remainders of cached prompts looks slower than one that computes whole ones. So a
        measured rate counts only where it differs from the median of all measured ones by more than
        `RATE_NOISE`, as another kind of device would; otherwise the median does. A rank that hasn't been
        measured has the median too, or the configured initial rate when there is none.
        """
        measured = self._ascending
        if not measured:
            return self._initial
        middle = len(measured) // 2
        typical = (measured[middle] + measured[-1 - middle]) / 2
        noise = RATE_NOISE * typical
        if typical - measured[0] <= noise and measured[-1] - typical <= noise:
            return typical
        self._make_room(routable.size - 1)
        rates = self._measured[routable.rows]
        # A comparison with nan, a rate that wasn't measured, is false.
        return np.where(np.abs(rates - typical) > noise, rates, typical)

    def check_integrity(self) -> None:
        """Raises AssertionError when what is kept twice differs."""
        measured = {rank: each.tokens_per_s for rank, each in self._measurements.items()}
        expected = {rank: rate for rank, rate in measured.items() if rate is not None}
        held = np.flatnonzero(~np.isnan(self._measured))
        assert dict(zip(held.tolist(), self._measured[held].tolist(), strict=True)) == expected, "by rank"
        assert self._ascending == sorted(expected.values()), "ascending"

    def _set(self, rank: int, tokens_per_s: float | None) -> None:
        self._make_room(rank)
        before = self._measured.item(rank)
        if before == tokens_per_s:
            return
        if not isnan(before):
            del self._ascending[bisect_left(self._ascending, before)]
        if tokens_per_s is not None:
            insort(self._ascending, tokens_per_s)
        self._measured[rank] = np.nan if tokens_per_s is None else tokens_per_s

    def _make_room(self, rank: int) -> None:
        size = len(self._measured)
        if rank >= size:
            missing = max(rank + 1 - size, size)
            self._measured = np.pad(self._measured, (0, missing), constant_values=np.nan)
