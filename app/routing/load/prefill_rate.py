"""A rank's measured prefill rate: the difference quotient of its cumulative counters.

    rate = Δ total_prefill_uncached_tokens / Δ total_prefill_busy_us        over the last WINDOW_TOKENS

Both counters come in every load report (SGLang's LoadStat) and start at zero with the rank's process, so
the first report already gives its mean rate since then. The window slides over prefilled tokens, not over
time: an idle hour doesn't make a measurement older.
"""

from __future__ import annotations

from collections import deque

WINDOW_TOKENS = 32_768
MIN_TOKENS = 128
"""Fewer tokens than this, such as one nearly cached prompt, say little about the rate."""
_POINT_SPACING_TOKENS = WINDOW_TOKENS // 64


class PrefillRate:
    """Sliding measurement of one rank; holds at most about 66 points."""

    def __init__(self) -> None:
        self._latest = (0, 0)
        """Total tokens and busy microseconds of the last report."""
        self._points = deque([self._latest])
        """Earlier reports, oldest first, thinned out; the first is where the window starts."""

    @property
    def tokens_per_s(self) -> float | None:
        """Uncached prompt tokens per second of prefill; None until enough of them were reported."""
        first_tokens, first_us = self._points[0]
        tokens, busy_us = self._latest[0] - first_tokens, self._latest[1] - first_us
        if tokens < MIN_TOKENS or busy_us <= 0:
            return None
        return tokens / busy_us * 1e6

    def observe(self, total_tokens: int, total_busy_us: int) -> None:
        """Take a report's counters. When either went back, the rank restarted and measuring starts again."""
        if total_tokens < self._latest[0] or total_busy_us < self._latest[1]:
            self._points = deque([(0, 0)])
        self._latest = (total_tokens, total_busy_us)
        if total_tokens - self._points[-1][0] >= _POINT_SPACING_TOKENS:
            self._points.append(self._latest)
        while len(self._points) > 1 and total_tokens - self._points[1][0] >= WINDOW_TOKENS:
            self._points.popleft()
