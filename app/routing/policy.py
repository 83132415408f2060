"""Policies: which rank should compute a prompt. Pure functions of what a router knows, by config name.

A policy sees the ranks that may be chosen and returns its choice with every rank's cost, so that a decision
can be explained. Ties go towards the least work assigned so far: taking the lowest number instead fills rank
0's cache with every new prefix and evicts what it held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from app.config import PolicyName

Trust = Literal["exact", "syncing", "stale"]
"""Whether a router knows a rank's cache, is finding out, or can't know."""

TIE = 1e-6
"""Costs this close to the lowest, relative to it, are equal: they differ by floating point alone."""
NEAR_TIE = 0.005
"""Predicted times this close to the lowest, relative to it, are equal: no prediction is better than that."""
QUEUE_GROWTH = 2.0
"""Requests that a second of work delays in the end, for each that waits now: see `predicted_ttft`."""


@dataclass(frozen=True)
class RankView:
    """What a router knows of one rank when it chooses.

    Attributes:
        rank: the rank's number.
        cached_tokens: tokens of this prompt that the rank needn't compute; less than the prompt's.
        waiting_tokens: prompt tokens that the rank must compute before it gets to this one.
        num_requests: requests running or waiting there, or on their way.
        prefill_rate: uncached prompt tokens per second, above 0.
        assigned_tokens: uncached tokens sent there so far.
        assigned_requests: requests sent there so far.
        trust: whether what its cache holds is known; if it isn't exact, `cached_tokens` is 0.
    """

    rank: int
    cached_tokens: int
    waiting_tokens: int
    num_requests: int
    prefill_rate: float
    assigned_tokens: int
    assigned_requests: int
    trust: Trust


@dataclass(frozen=True)
class Choice:
    """A policy's answer.

    Attributes:
        rank: the chosen rank.
        predicted_ttft_s: seconds until the chosen rank will have computed the prompt.
        costs: the policy's cost of every rank, in the order of the views and in the policy's own unit.
    """

    rank: int
    predicted_ttft_s: float
    costs: tuple[float, ...]


Policy = Callable[[Sequence[RankView], int, float | None], Choice]
"""(views, at least one; the prompt's tokens; mean uncached tokens of past requests, if any) → choice."""


def predicted_ttft(
    views: Sequence[RankView], num_tokens: int, mean_uncached_tokens: float | None = None
) -> Choice:
    """The rank that answers soonest, with the delay that the request causes to others; cost in seconds.

        cost_r = wait_r + (1 + q) * uncached_r / rate_r        wait_r = waiting tokens_r / rate_r
        q      = 2 * harmonic mean of wait_r over the ranks / mean service time of a request

    Without q, this is the predicted time to first token. By Little's law wait / service time requests wait on
    a rank, and a second of work delays all of them, and those that come before the queue is gone: u / (1 - u)
    times as many at utilisation u, as many again where the ranks are half busy, hence the 2. So q grows with
    overload, where computing a prefix again costs everybody. The harmonic mean is 0 as soon as one rank is
    idle, since work can then go where it delays nobody; with the arithmetic mean, one rank's queue alone
    would tie every request to the prefix that made it queue. The mean service time is that of past requests;
    before the first, this prompt stands for them.

    Ties, near ones included, go to the rank with fewer requests (its decode steps compete with this prefill),
    then to the one with the least tokens assigned so far, then to the lowest number.

    Source: replays of a real trace and of bursts on one hot prefix,
    `docs/decisions/0001-harmonic-mean-wait.md` and `0025-near-ties-and-growing-queues.md`.
    """
    waits = [view.waiting_tokens / view.prefill_rate for view in views]
    services = [(num_tokens - view.cached_tokens) / view.prefill_rate for view in views]
    if mean_uncached_tokens is None:
        mean_service = sum(services) / len(views)
    else:
        mean_service = sum(mean_uncached_tokens / view.prefill_rate for view in views) / len(views)
    q = QUEUE_GROWTH * _harmonic_mean(waits) / mean_service
    costs = tuple(wait + (1 + q) * service for wait, service in zip(waits, services, strict=True))
    best = _best(views, costs, lambda view: (view.num_requests, view.assigned_tokens, view.rank), NEAR_TIE)
    return Choice(views[best].rank, waits[best] + services[best], costs)


def least_loaded(
    views: Sequence[RankView], num_tokens: int, mean_uncached_tokens: float | None = None
) -> Choice:
    """The rank with the fewest requests, whatever it holds; ties as least tokens assigned, lowest number."""
    costs = tuple(float(view.num_requests) for view in views)
    best = _best(views, costs, lambda view: (view.assigned_tokens, view.rank))
    return Choice(views[best].rank, _predicted_ttft_s(views[best], num_tokens), costs)


def round_robin(
    views: Sequence[RankView], num_tokens: int, mean_uncached_tokens: float | None = None
) -> Choice:
    """The rank that got the fewest requests so far, lowest number first: in turn while membership stays."""
    costs = tuple(float(view.assigned_requests) for view in views)
    best = _best(views, costs, lambda view: view.rank)
    return Choice(views[best].rank, _predicted_ttft_s(views[best], num_tokens), costs)


POLICIES: Final[Mapping[PolicyName, Policy]] = MappingProxyType(
    {"predicted_ttft": predicted_ttft, "least_loaded": least_loaded, "round_robin": round_robin}
)


def _harmonic_mean(values: Sequence[float]) -> float:
    """Of values >= 0; 0 when one of them is."""
    if min(values) == 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)


def _predicted_ttft_s(view: RankView, num_tokens: int) -> float:
    return (view.waiting_tokens + num_tokens - view.cached_tokens) / view.prefill_rate


def _best(
    views: Sequence[RankView],
    costs: Sequence[float],
    tie_break: Callable[[RankView], Any],
    tie: float = TIE,
) -> int:
    """The position of the lowest cost; among those equal to it but for `tie`, of the lowest `tie_break`."""
    limit = min(costs) * (1 + tie)
    tied = [position for position, cost in enumerate(costs) if cost <= limit]
    return min(tied, key=lambda position: tie_break(views[position]))
