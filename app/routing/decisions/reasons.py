"""Why a decision chose its rank, in words: what the policy goes by, and what it gave up for that."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from app.routing.decisions.chooser import Decision
from app.routing.policies.policy import NEAR_TIE, admission_s

_COSTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "predicted_ttft": "seconds to the first token, and of delay to others",
        "least_loaded": "requests running, waiting or on their way",
        "round_robin": "requests sent there so far",
        "prefix_affinity": "tokens to compute, and the prompt's more where overloaded",
    }
)
"""What the costs are. Of the policies that aren't here they only say who was drawn, or in which order."""

_BY_CACHE: Final = frozenset({"predicted_ttft", "prefix_affinity"})
"""Policies that look at what ranks hold."""


def reasons(decision: Decision, dp_size: int) -> str:
    """Sentences joined by semicolons; `dp_size` is the number of ranks, alive or not."""
    if decision.pinned_rank is not None:
        return f"the client named rank {decision.rank}"
    if len(decision.candidates) == 1:
        return f"rank {decision.rank} is the only one that could be chosen"
    match decision.policy:
        case "session":
            choice = _by_session(decision, dp_size)
        case "random":
            choice = f"random drew rank {decision.rank} of {_ranks(decision)}; every request draws anew"
        case "power_of_two":
            choice = _by_two(decision)
        case _:
            choice = _by_cost(decision)
    sentences = (_deferral(decision), choice, _by_cache(decision), _by_trust(decision))
    return "; ".join(filter(None, sentences))


def _deferral(decision: Decision) -> str:
    if decision.deferred_by is None:
        return ""
    return f"{decision.deferred_by} left the choice to {decision.policy}: the request names no x-session-id"


def _by_cost(decision: Decision) -> str:
    rank, name = decision.rank, f"{decision.policy} ({_COSTS[decision.policy]})"
    by_cost = sorted(decision.considered, key=lambda each: each.cost)
    own = next(each.cost for each in by_cost if each.view.rank == rank)
    limit = by_cost[0].cost * (1 + (NEAR_TIE if decision.policy == "predicted_ttft" else 0))
    tied = sorted(each.view.rank for each in by_cost if each.cost <= limit)
    if len(tied) > 1:
        return f"ranks {tied} have the lowest cost of {name}, {own:.4g}, and its tie-break took rank {rank}"
    second = by_cost[1]
    return (
        f"rank {rank} has the lowest cost of {name}, {own:.4g}; "
        f"next is rank {second.view.rank} with {second.cost:.4g}"
    )


def _by_session(decision: Decision, dp_size: int) -> str:
    """A cost above 1 is an overloaded rank's, and what it has beyond that is its distance."""
    distances = {each.view.rank: each.cost - (each.cost > 1) for each in decision.considered}
    passed = sorted(rank for rank, distance in distances.items() if distance < distances[decision.rank])
    if passed:
        return f"rank {decision.rank} is the next in the session's order after {passed}, which are overloaded"
    if len(distances) < dp_size:
        return f"rank {decision.rank} is the first in the session's order of {_ranks(decision)}"
    return f"rank {decision.rank} is the session's own"


def _by_two(decision: Decision) -> str:
    drawn = [each.view.rank for each in decision.considered if each.cost < 2]
    less = f"of which {decision.rank} is the less loaded"
    return f"power_of_two drew ranks {drawn}, {less}; every request draws anew"


def _by_cache(decision: Decision) -> str:
    best = max(decision.candidates, key=lambda view: view.cached_tokens)
    num_tokens = decision.cached_tokens + decision.uncached_tokens
    held = f"it holds {decision.cached_tokens} of the prompt's {num_tokens} tokens"
    if not decision.missed_tokens:
        return held
    other = f"rank {best.rank} holds {best.cached_tokens}"
    if decision.policy not in _BY_CACHE:
        return f"{held}, {other}, which {decision.policy} doesn't look at"
    if decision.policy == "prefix_affinity":
        return f"{held}, {other} but has {best.num_requests} requests"
    wait_s = admission_s(best, num_tokens)
    memory = f", and room for this prompt in {wait_s:.3g} s" if wait_s else ""
    return f"{held}, {other} but has {best.waiting_tokens} waiting{memory}"


def _by_trust(decision: Decision) -> str:
    unknown = [view.rank for view in decision.candidates if view.trust != "exact"]
    return f"ranks {unknown} aren't exact and are credited nothing" if unknown else ""


def _ranks(decision: Decision) -> list[int]:
    return [view.rank for view in decision.candidates]
