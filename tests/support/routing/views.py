"""What a router knows of ranks, made up: for policies alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from hypothesis import strategies as st

from app.routing.policies.base import Choice, PolicyInput
from app.routing.policies.registry import POLICIES
from app.routing.rank_view import NO_PRICES, RankCounts, RankPrices, RankView, RankViews


def new_view(
    rank: int,
    *,
    cached_tokens: int = 0,
    prefill_rate: float = 1000.0,
    waiting_tokens: int = 0,
    num_requests: int = 0,
    assigned_tokens: int = 0,
    assigned_requests: int = 0,
    free_tokens: float = inf,
    batch_slot_wait_s: float = 0.0,
    release_s: float = 0.0,
    prices: RankPrices[float] = NO_PRICES,
) -> RankView:
    """A rank that is idle and empty, but for what is given."""
    counts = RankCounts[float](
        waiting_tokens=waiting_tokens,
        num_requests=num_requests,
        assigned_tokens=assigned_tokens,
        assigned_requests=assigned_requests,
        free_tokens=free_tokens,
        batch_slot_wait_s=batch_slot_wait_s,
        release_s=release_s,
    )
    return RankView(rank, cached_tokens, counts, prefill_rate, "exact", prices)


def with_requests(view: RankView, num_requests: int) -> RankView:
    """The same rank with so many requests."""
    return replace(view, counts=view.counts._replace(num_requests=num_requests))


def choose(
    policy: str,
    views: Sequence[RankView],
    num_tokens: int = 1000,
    mean_uncached_tokens: float | None = None,
    *,
    session_id: str | None = None,
    draw: float = 0.0,
) -> Choice:
    """What the policy of this name chooses for a prompt of `num_tokens`."""
    given = PolicyInput(num_tokens, mean_uncached_tokens, session_id, draw)
    return POLICIES[policy].choose(RankViews.of(views), given)


VIEWS = st.lists(
    st.builds(
        new_view,
        rank=st.integers(0, 63),
        cached_tokens=st.integers(0, 999),
        waiting_tokens=st.integers(0, 10**9),
        num_requests=st.integers(0, 10**6),
        prefill_rate=st.floats(1e-3, 1e9),
        assigned_tokens=st.integers(0, 10**12),
        assigned_requests=st.integers(0, 10**9),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda each: each.rank,
)
"""Ranks with memory to spare, of which a prompt of 1,000 tokens or more isn't wholly cached anywhere."""
FEW_REQUESTS = st.integers(0, 80)
"""Around what counts as overloaded."""
