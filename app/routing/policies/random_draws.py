"""Policies that draw ranks: `random`, `power_of_two`."""

from __future__ import annotations

from typing import Final

import numpy as np

from app.routing.policies.base import Choice, PastChoice, PolicyInput, PolicySpec
from app.routing.policies.prediction import chosen
from app.routing.policies.ranking import lowest
from app.routing.rank_sets import Integers
from app.routing.rank_view import ROWS, RankViews


def random(views: RankViews, given: PolicyInput) -> Choice:
    """Any rank, all equally likely; cost 0 for the one that was drawn, 1 for the others."""
    drawn = int(given.draw * len(views))
    costs = np.ones(len(views))
    costs[drawn] = 0
    return chosen(views, drawn, given.num_tokens, costs)


def power_of_two(views: RankViews, given: PolicyInput) -> Choice:
    """The less loaded of two different ranks, all pairs equally likely; which is less, `least_loaded` says.

    Cost 0 for the chosen rank, 1 for the other that was drawn, 2 for those that weren't looked at.

    Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """
    drawn = _two_positions(len(views), given.draw)
    best = lowest(drawn, views.counts[ROWS.num_requests], views.counts[ROWS.assigned_tokens])
    costs = np.full(len(views), 2.0)
    costs[drawn] = 1
    costs[best] = 0
    return chosen(views, best, given.num_tokens, costs)


def _two_positions(length: int, draw: float) -> Integers:
    """Two different positions, all ordered pairs equally likely; the only one where there is just one."""
    if length == 1:
        return np.zeros(1, np.int64)
    first, step = divmod(int(draw * length * (length - 1)), length - 1)
    return np.array([first, (first + 1 + step) % length])


def _explain_random(choice: PastChoice) -> str:
    return f"random drew rank {choice.rank} of {choice.ranks}; every request draws again"


def _explain_power_of_two(choice: PastChoice) -> str:
    drawn = [each.view.rank for each in choice.candidates if each.cost < 2]
    less = f"of which {choice.rank} is the less loaded"
    return f"power_of_two drew ranks {drawn}, {less}; every request draws again"


RANDOM: Final = PolicySpec(
    name="random",
    description="any, all equally likely",
    choose=random,
    explain=_explain_random,
)
POWER_OF_TWO: Final = PolicySpec(
    name="power_of_two",
    description="the one with fewer requests of two random ranks",
    choose=power_of_two,
    explain=_explain_power_of_two,
)
