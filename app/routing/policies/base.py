"""What a policy is: a choice, and what it says of itself and of its choices.

A policy sees the ranks that may be chosen and returns its choice with every rank's cost, so that a decision
can be explained. Ties go towards the least work assigned so far: taking the lowest number instead fills rank
0's cache with every new prefix and evicts what it held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from app.routing.rank_view import Floats, RankView, RankViews


class PolicyInput(msgspec.Struct, frozen=True):
    """What a policy goes by besides the ranks.

    Attributes:
        num_tokens: the prompt's, at least 1.
        mean_uncached_tokens: of past requests; None before the first.
        session_id: the session that the client named, if it did.
        draw: the chance in a choice: uniform, at least 0 and below 1.
        loss_row: where `RankViews.prices` has the share of such prompts that return and are lost; None where
            none are.
        copyable_tokens: of the prompt's beginning, those that may be computed on one more rank without being
            counted against it.
    """

    num_tokens: int
    mean_uncached_tokens: float | None = None
    session_id: str | None = None
    draw: float = 0.0
    loss_row: int | None = None
    copyable_tokens: int = 0


class Choice(msgspec.Struct, frozen=True, eq=False):
    """A policy's answer.

    Attributes:
        rank: the chosen rank.
        cached_tokens: of the prompt, there.
        predicted_ttft_s: seconds until the chosen rank will have computed the prompt.
        costs: the policy's cost of every rank, in the order of the views and in the policy's own unit.
        deferred_to: name of the policy that chose instead, in the unit of which the costs are then.
    """

    rank: int
    cached_tokens: int
    predicted_ttft_s: float
    costs: Floats
    deferred_to: str | None = None


@dataclass(frozen=True)
class CandidateCost:
    """One rank that could be chosen, and its cost in the policy's own unit."""

    view: RankView
    cost: float


@dataclass(frozen=True)
class PastChoice:
    """A choice between several ranks, to be explained.

    Attributes:
        policy: that made it.
        rank: the chosen one.
        candidates: all ranks that could be chosen, by rank.
        dp_size: ranks that there are or should be, routable or not.
    """

    policy: PolicySpec
    rank: int
    candidates: Sequence[CandidateCost]
    dp_size: int

    @property
    def ranks(self) -> list[int]:
        """The candidates' numbers."""
        return [each.view.rank for each in self.candidates]


def explain_lowest_cost(choice: PastChoice) -> str:
    """The chosen rank's cost and the next one's, or which ranks were tied."""
    policy, rank = choice.policy, choice.rank
    name = f"{policy.name} ({policy.cost_unit})"
    by_cost = sorted(choice.candidates, key=lambda each: each.cost)
    own = next(each.cost for each in by_cost if each.view.rank == rank)
    limit = by_cost[0].cost * (1 + policy.near_tie)
    tied = sorted(each.view.rank for each in by_cost if each.cost <= limit)
    if len(tied) > 1:
        return f"ranks {tied} have the lowest cost of {name}, {own:.4g}, and its tie-break took rank {rank}"
    second = by_cost[1]
    return (
        f"rank {rank} has the lowest cost of {name}, {own:.4g}; "
        f"next is rank {second.view.rank} with {second.cost:.4g}"
    )


def describe_requests(view: RankView, num_tokens: int) -> str:
    """The load of a rank by its requests, whatever the prompt's `num_tokens`."""
    return f"{int(view.counts.num_requests)} requests"


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """One policy.

    Attributes:
        name: in the config.
        description: which rank it takes, on one line, for the table in `docs/operations.md`.
        choose: the choice between the given ranks, at least one; pure.
        cost_unit: what its costs are; None where they only say which rank was drawn, or in which order.
        looks_at_caches: whether what ranks hold of the prompt counts.
        near_tie: costs this close to the lowest, relative to it, are equal.
        explain: one sentence on a choice that it made.
        describe_load: what a rank has that holds more of the prompt, of so many tokens, and wasn't chosen.
        deferral_reason: why it leaves some choices to another policy, if it does.
    """

    name: str
    description: str
    choose: Callable[[RankViews, PolicyInput], Choice]
    cost_unit: str | None = None
    looks_at_caches: bool = False
    near_tie: float = 0.0
    explain: Callable[[PastChoice], str] = explain_lowest_cost
    describe_load: Callable[[RankView, int], str] = describe_requests
    deferral_reason: str | None = None
