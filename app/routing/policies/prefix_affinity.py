"""The policy `prefix_affinity`: the longest cached prefix."""

from __future__ import annotations

from typing import Final

from app.routing.policies.base import Choice, PolicyInput, PolicySpec
from app.routing.policies.prediction import chosen
from app.routing.policies.ranking import all_positions, lowest, overloaded
from app.routing.rank_view import ROWS, RankViews


def prefix_affinity(views: RankViews, given: PolicyInput) -> Choice:
    """The longest cached prefix among ranks that aren't overloaded (`overloaded`); ties as `least_loaded`.

    The cost is this prompt's uncached tokens; on an overloaded rank the whole prompt more, so that it comes
    after all others.
    """
    counts, num_tokens = views.counts, given.num_tokens
    uncached = num_tokens - views.cached_tokens + num_tokens * overloaded(views)
    best = lowest(all_positions(views), uncached, counts[ROWS.num_requests], counts[ROWS.assigned_tokens])
    return chosen(views, best, num_tokens, uncached)


PREFIX_AFFINITY: Final = PolicySpec(
    name="prefix_affinity",
    description="the longest cached prefix among ranks that aren't overloaded, then the fewest requests",
    choose=prefix_affinity,
    cost_unit="tokens to compute, and the prompt's more where overloaded",
    looks_at_caches=True,
)
