"""Policies that count requests and look at nothing else: `least_loaded`, `round_robin`."""

from __future__ import annotations

from typing import Final

from app.routing.policies.base import Choice, PolicyInput, PolicySpec
from app.routing.policies.prediction import chosen
from app.routing.policies.ranking import all_positions, lowest
from app.routing.rank_view import ROWS, RankViews


def least_loaded(views: RankViews, given: PolicyInput) -> Choice:
    """The rank with the fewest requests, whatever it holds; ties to the least tokens assigned, then first."""
    requests = views.counts[ROWS.num_requests]
    best = lowest(all_positions(views), requests, views.counts[ROWS.assigned_tokens])
    return chosen(views, best, given.num_tokens, requests)


def round_robin(views: RankViews, given: PolicyInput) -> Choice:
    """The rank that got the fewest requests so far, ties to the first: in turn while membership stays."""
    assigned = views.counts[ROWS.assigned_requests]
    return chosen(views, lowest(all_positions(views), assigned), given.num_tokens, assigned)


LEAST_LOADED: Final = PolicySpec(
    name="least_loaded",
    description="the fewest requests running, waiting or on their way",
    choose=least_loaded,
    cost_unit="requests running, waiting or on their way",
)
ROUND_ROBIN: Final = PolicySpec(
    name="round_robin",
    description="the fewest requests sent so far: in turn",
    choose=round_robin,
    cost_unit="requests sent there so far",
)
