"""When a rank will have computed a prompt: predicted alike, whichever policy chooses.

    predicted_ttft_r = max(waiting tokens_r / rate_r, admission_r) + uncached_r / rate_r
    admission_r      = max((uncached_r - free tokens_r) * release_s_r, batch_slot_wait_s_r), at least 0

What is cached and held by no request is free, and what is cached of this prompt needs no more room. How soon
tokens and places become free, `RankLoad` says. Work before the prompt and the wait for room pass together.
"""

from __future__ import annotations

import numpy as np

from app.routing.policies.base import Choice
from app.routing.rank_view import ROWS, Floats, RankView, RankViews


def chosen(views: RankViews, best: int, num_tokens: int, costs: Floats) -> Choice:
    """The choice of the rank at position `best`."""
    cached_tokens = views.cached_at(best)
    predicted_s = predicted_ttft_s(views, best, num_tokens - cached_tokens)
    return Choice(views.rank.item(best), cached_tokens, predicted_s, costs)


def predicted_ttft_s(views: RankViews, position: int, uncached_tokens: int) -> float:
    """Seconds until the rank at `position` will have computed a prompt, `uncached_tokens` of it itself."""
    counts, rate = views.counts, views.rate_at(position)
    wait_s: float = counts.item(ROWS.waiting_tokens, position) / rate
    missing = uncached_tokens - counts.item(ROWS.free_tokens, position)
    if missing > 0:
        release_s = counts.item(ROWS.release_s, position)
        wait_s = max(wait_s, missing * release_s, counts.item(ROWS.batch_slot_wait_s, position))
    return wait_s + uncached_tokens / rate


def admission_waits_s(views: RankViews, num_tokens: int) -> Floats | None:
    """Seconds until each rank has memory and a place for the prompt; None where all have now."""
    free: Floats = views.counts[ROWS.free_tokens]
    if free.item(free.argmin()) >= num_tokens:
        return None
    missing = num_tokens - views.cached_tokens - free
    release_s, batch_slot_wait_s = views.counts[ROWS.release_s], views.counts[ROWS.batch_slot_wait_s]
    waits_s: Floats = np.maximum(np.maximum(missing, 0) * release_s, batch_slot_wait_s)
    return waits_s


def admission_s(view: RankView, num_tokens: int) -> float:
    """Seconds until the rank has memory and a place for a prompt of `num_tokens`; 0 if it has now."""
    waits_s = admission_waits_s(RankViews.of([view]), num_tokens)
    return 0.0 if waits_s is None else waits_s.item(0)
