"""Policies: which rank should compute a prompt. Pure functions of what a router knows, by config name.

A policy sees the ranks that may be chosen and returns its choice with every rank's cost, so that a decision
can be explained. Ties go towards the least work assigned so far: taking the lowest number instead fills rank
0's cache with every new prefix and evicts what it held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from app.config import PolicyName
from app.routing.rank_view import Floats, Integers, RankView, RankViews
from app.routing.rendezvous import rendezvous_weights

TIE = 1e-6
"""Costs this close to the lowest, relative to it, are equal: they differ by floating point alone."""
NEAR_TIE = 0.005
"""Predicted times this close to the lowest, relative to it, are equal: no prediction is better than that."""
QUEUE_GROWTH = 2.0
"""Requests that a second of work delays in the end, for each that waits now: see `predicted_ttft`."""

BALANCE_ABS_THRESHOLD = 32
BALANCE_REL_THRESHOLD = 1.1
"""What SGLang's `cache_aware` calls imbalance, with its defaults: see `_overloaded`."""


@dataclass(frozen=True)
class Choice:
    """A policy's answer.

    Attributes:
        rank: the chosen rank.
        predicted_ttft_s: seconds until the chosen rank will have computed the prompt.
        costs: the policy's cost of every rank, in the order of the views and in the policy's own unit.
        deferred_to: the policy that chose instead, in whose unit the costs are then.
    """

    rank: int
    predicted_ttft_s: float
    costs: tuple[float, ...]
    deferred_to: PolicyName | None = None


@dataclass(frozen=True)
class Hints:
    """What some policies go by besides ranks and lengths.

    Attributes:
        session_id: the session that the client named, if it did.
        draw: the chance in a choice: uniform, at least 0 and below 1.
    """

    session_id: str | None = None
    draw: float = 0.0


NO_HINTS: Final = Hints()

Policy = Callable[[Sequence[RankView], int, float | None, Hints], Choice]
"""(views, at least one; the prompt's tokens; mean uncached tokens of past requests, if any; hints) → choice.

Without hints there is no session, and every draw is the same.
"""


def predicted_ttft(
    views: Sequence[RankView],
    num_tokens: int,
    mean_uncached_tokens: float | None = None,
    hints: Hints = NO_HINTS,
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
    columns = RankViews.of(views)
    waits = columns.waiting_tokens / columns.prefill_rate
    services = (num_tokens - columns.cached_tokens) / columns.prefill_rate
    if mean_uncached_tokens is None:
        mean_service = services.mean()
    else:
        mean_service = (mean_uncached_tokens / columns.prefill_rate).mean()
    q = QUEUE_GROWTH * _harmonic_mean(waits) / mean_service
    costs = waits + (1 + q) * services
    tied = np.flatnonzero(costs <= costs.min() * (1 + NEAR_TIE))
    best = _lowest(tied, columns.num_requests, columns.assigned_tokens, columns.rank)
    return Choice(int(columns.rank[best]), float(waits[best] + services[best]), tuple(costs.tolist()))


def least_loaded(
    views: Sequence[RankView],
    num_tokens: int,
    mean_uncached_tokens: float | None = None,
    hints: Hints = NO_HINTS,
) -> Choice:
    """The rank with the fewest requests, whatever it holds; ties as least tokens assigned, lowest number."""
    costs = tuple(float(view.num_requests) for view in views)
    best = _best(views, costs, lambda view: (view.assigned_tokens, view.rank))
    return Choice(views[best].rank, _predicted_ttft_s(views[best], num_tokens), costs)


def round_robin(
    views: Sequence[RankView],
    num_tokens: int,
    mean_uncached_tokens: float | None = None,
    hints: Hints = NO_HINTS,
) -> Choice:
    """The rank that got the fewest requests so far, lowest number first: in turn while membership stays."""
    costs = tuple(float(view.assigned_requests) for view in views)
    best = _best(views, costs, lambda view: view.rank)
    return Choice(views[best].rank, _predicted_ttft_s(views[best], num_tokens), costs)


def random(
    views: Sequence[RankView],
    num_tokens: int,
    mean_uncached_tokens: float | None = None,
    hints: Hints = NO_HINTS,
) -> Choice:
    """Any rank, all equally likely; cost 0 for the one that was drawn, 1 for the others."""
    drawn = int(hints.draw * len(views))
    costs = tuple(float(position != drawn) for position in range(len(views)))
    return Choice(views[drawn].rank, _predicted_ttft_s(views[drawn], num_tokens), costs)


def power_of_two(
    views: Sequence[RankView],
    num_tokens: int,
    mean_uncached_tokens: float | None = None,
    hints: Hints = NO_HINTS,
) -> Choice:
    """The less loaded of two different ranks, all pairs equally likely; which is less, `least_loaded` says.

    Cost 0 for the chosen rank, 1 for the other that was drawn, 2 for those that weren't looked at.

    Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """
    drawn = _two_positions(len(views), hints.draw)
    choice = least_loaded([views[position] for position in drawn], num_tokens)
    costs = [2.0] * len(views)
    for position in drawn:
        costs[position] = float(views[position].rank != choice.rank)
    return replace(choice, costs=tuple(costs))


def prefix_affinity(
    views: Sequence[RankView],
    num_tokens: int,
    mean_uncached_tokens: float | None = None,
    hints: Hints = NO_HINTS,
) -> Choice:
    """The longest cached prefix among ranks that aren't overloaded (`_overloaded`); ties as `least_loaded`.

    The cost is this prompt's uncached tokens; on an overloaded rank the whole prompt more, so that it comes
    after all others.
    """
    costs = tuple(
        float(num_tokens - view.cached_tokens + num_tokens * overloaded)
        for view, overloaded in zip(views, _overloaded(views), strict=True)
    )
    best = _best(views, costs, lambda view: (view.num_requests, view.assigned_tokens, view.rank))
    return Choice(views[best].rank, _predicted_ttft_s(views[best], num_tokens), costs)


def session(
    views: Sequence[RankView],
    num_tokens: int,
    mean_uncached_tokens: float | None = None,
    hints: Hints = NO_HINTS,
) -> Choice:
    """The session's own rank, whatever it holds; without a session, as `predicted_ttft`.

    Every session has an order of all ranks that no other rank's coming or going changes (rendezvous
    hashing). The first rank in it that isn't overloaded (`_overloaded`) is chosen: so a rank's death moves
    only its own sessions, each to the next of its order, and its return brings them back.

    The cost is the rank's distance in that order, from 0 to 1; 1 more on an overloaded rank.

    Source: V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018, for
    passing over ranks that have too much.
    """
    if hints.session_id is None:
        choice = predicted_ttft(views, num_tokens, mean_uncached_tokens)
        return replace(choice, deferred_to="predicted_ttft")
    weights = rendezvous_weights(hints.session_id, 1 + max(view.rank for view in views))
    costs = tuple(
        1 - weights[view.rank] / 2**64 + overloaded
        for view, overloaded in zip(views, _overloaded(views), strict=True)
    )
    # No ties here: taking close costs for equal would let another rank's death move the session.
    best = min(range(len(views)), key=lambda position: (costs[position], views[position].rank))
    return Choice(views[best].rank, _predicted_ttft_s(views[best], num_tokens), costs)


POLICIES: Final[Mapping[PolicyName, Policy]] = MappingProxyType(
    {
        "predicted_ttft": predicted_ttft,
        "least_loaded": least_loaded,
        "round_robin": round_robin,
        "random": random,
        "power_of_two": power_of_two,
        "prefix_affinity": prefix_affinity,
        "session": session,
    }
)


def _overloaded(views: Sequence[RankView]) -> list[bool]:
    """Which ranks have both over 32 requests more than the least loaded one, and over 1.1 times as many.

    So the least loaded rank never is.

    Source: SGLang's router, policy `cache_aware`, `balance_abs_threshold` and `balance_rel_threshold`
    (sgl-model-gateway/src/policies, defaults of `CacheAwareConfig`). It takes the least loaded rank as soon
    as the most loaded one has so much; here only ranks that have are passed over, so that one queue doesn't
    cost the other ranks' prefixes.
    """
    least = min(view.num_requests for view in views)
    return [
        view.num_requests - least > BALANCE_ABS_THRESHOLD
        and view.num_requests > BALANCE_REL_THRESHOLD * least
        for view in views
    ]


def _two_positions(length: int, draw: float) -> tuple[int, ...]:
    """Two different positions, all ordered pairs equally likely; the only one where there is just one."""
    if length == 1:
        return (0,)
    first, step = divmod(int(draw * length * (length - 1)), length - 1)
    return first, (first + 1 + step) % length


def _harmonic_mean(values: Floats) -> float:
    """Of values >= 0; 0 when one of them is."""
    if values.min() == 0:
        return 0.0
    return float(len(values) / (1 / values).sum())


def _lowest(positions: Integers, *keys: Integers) -> int:
    """Of `positions`, the one with the lowest first key; among equals, with the lowest next key."""
    for key in keys:
        if len(positions) == 1:
            break
        values = key[positions]
        positions = positions[values == values.min()]
    return int(positions[0])


def _predicted_ttft_s(view: RankView, num_tokens: int) -> float:
    return (view.waiting_tokens + num_tokens - view.cached_tokens) / view.prefill_rate


def _best(views: Sequence[RankView], costs: Sequence[float], tie_break: Callable[[RankView], Any]) -> int:
    """The position of the lowest cost; among equal costs, of the lowest `tie_break`."""
    limit = min(costs) * (1 + TIE)
    tied = [position for position, cost in enumerate(costs) if cost <= limit]
    return min(tied, key=lambda position: tie_break(views[position]))
