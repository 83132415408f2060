"""Policies: which rank should compute a prompt. Pure functions of what a router knows, by config name.

A policy sees the ranks that may be chosen and returns its choice with every rank's cost, so that a decision
can be explained. Ties go towards the least work assigned so far: taking the lowest number instead fills rank
0's cache with every new prefix and evicts what it held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from app.config import PolicyName
from app.routing.policies.rendezvous import rendezvous_weights
from app.routing.rank_sets import Integers
from app.routing.rank_view import Floats, RankView, RankViews

NEAR_TIE = 0.005
"""Predicted times this close to the lowest, relative to it, are equal: no prediction is better than that."""
QUEUE_GROWTH = 2.0
"""Requests that a second of work delays in the end, for each that waits now: see `predicted_ttft`."""

BALANCE_ABS_THRESHOLD = 32
BALANCE_REL_THRESHOLD = 1.1
"""What SGLang's `cache_aware` calls imbalance, with its defaults: see `_overloaded`."""


class Choice(msgspec.Struct, frozen=True, eq=False):
    """A policy's answer.

    Attributes:
        rank: the chosen rank.
        cached_tokens: of the prompt, there.
        predicted_ttft_s: seconds until the chosen rank will have computed the prompt.
        costs: the policy's cost of every rank, in the order of the views and in the policy's own unit.
        deferred_to: the policy that chose instead, in whose unit the costs are then.
    """

    rank: int
    cached_tokens: int
    predicted_ttft_s: float
    costs: Floats
    deferred_to: PolicyName | None = None


class Hints(msgspec.Struct, frozen=True):
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

        cost_r = wait_r + (1 + q) * uncached_r / rate_r
        wait_r = max(waiting tokens_r / rate_r, admission_r)        admission_r: see `_admission_s`
        q      = 2 * harmonic mean of wait_r over the ranks / mean service time of a request

    Without q, this is the predicted time to first token. By Little's law wait / service time requests wait on
    a rank, and a second of work delays all of them, and those that come before the queue is gone: u / (1 - u)
    times as many at utilisation u, as many again where the ranks are half busy, hence the 2. So q grows with
    overload, where computing a prefix again costs everybody. The harmonic mean is 0 as soon as one rank is
    idle, since work can then go where it delays nobody; with the arithmetic mean, one rank's queue alone
    would tie every request to the prefix that made it queue. The mean service time is that of past requests;
    before the first, this prompt stands for them.

    A prompt for which there is no room waits until others are done, while those before it are computed: so
    the longer of both waits counts. q is the same for either: where memory lets requests in, one in a service
    time of its own, u uncached tokens beside the mean's u' keep each of wait / service time requests waiting
    for u / u' of that, which is wait * u / u' in all, whatever the service time.

    Ties, near ones included, go to the rank with fewer requests (its decode steps compete with this prefill),
    then to the one with the least tokens assigned so far, then to the first.

    Source: replays of a real trace and of bursts on one hot prefix,
    `docs/decisions/0001-harmonic-mean-wait.md`, `0025-near-ties-and-growing-queues.md` and
    `0030-waiting-for-memory.md`.
    """
    columns = RankViews.of(views)
    waiting, rate = columns.waiting_tokens, columns.prefill_rate
    admission = _admission_s(columns, num_tokens)
    if admission is not None:
        waiting = np.maximum(waiting, admission * rate)
    service_s = _mean((mean_uncached_tokens or num_tokens - columns.cached_tokens) / rate)
    weight = 1 + QUEUE_GROWTH * _harmonic_mean_wait(waiting, rate) / service_s
    costs = waiting + weight * num_tokens
    for positions, cached_tokens in columns.tiers:
        costs[positions] -= weight * cached_tokens
    costs /= rate
    tied = (costs <= costs.item(costs.argmin()) * (1 + NEAR_TIE)).nonzero()[0]
    best = tied.item(0) if len(tied) == 1 else _lowest(tied, columns.num_requests, columns.assigned_tokens)
    return _chosen(columns, best, num_tokens, costs)


def least_loaded(
    views: Sequence[RankView],
    num_tokens: int,
    mean_uncached_tokens: float | None = None,
    hints: Hints = NO_HINTS,
) -> Choice:
    """The rank with the fewest requests, whatever it holds; ties as least tokens assigned, then first."""
    columns = RankViews.of(views)
    best = _lowest(_all(columns), columns.num_requests, columns.assigned_tokens)
    return _chosen(columns, best, num_tokens, columns.num_requests)


def round_robin(
    views: Sequence[RankView],
    num_tokens: int,
    mean_uncached_tokens: float | None = None,
    hints: Hints = NO_HINTS,
) -> Choice:
    """The rank that got the fewest requests so far, ties to the first: in turn while membership stays."""
    columns = RankViews.of(views)
    best = _lowest(_all(columns), columns.assigned_requests)
    return _chosen(columns, best, num_tokens, columns.assigned_requests)


def random(
    views: Sequence[RankView],
    num_tokens: int,
    mean_uncached_tokens: float | None = None,
    hints: Hints = NO_HINTS,
) -> Choice:
    """Any rank, all equally likely; cost 0 for the one that was drawn, 1 for the others."""
    columns = RankViews.of(views)
    drawn = int(hints.draw * len(columns))
    costs = np.ones(len(columns))
    costs[drawn] = 0
    return _chosen(columns, drawn, num_tokens, costs)


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
    columns = RankViews.of(views)
    drawn = _two_positions(len(columns), hints.draw)
    best = _lowest(drawn, columns.num_requests, columns.assigned_tokens)
    costs = np.full(len(columns), 2.0)
    costs[drawn] = 1
    costs[best] = 0
    return _chosen(columns, best, num_tokens, costs)


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
    columns = RankViews.of(views)
    uncached = num_tokens - columns.cached_tokens + num_tokens * _overloaded(columns)
    best = _lowest(_all(columns), uncached, columns.num_requests, columns.assigned_tokens)
    return _chosen(columns, best, num_tokens, uncached)


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
    columns = RankViews.of(views)
    if hints.session_id is None:
        choice = predicted_ttft(columns, num_tokens, mean_uncached_tokens)
        return msgspec.structs.replace(choice, deferred_to="predicted_ttft")
    weights = rendezvous_weights(hints.session_id, 1 + int(columns.rank.max()))
    costs = 1 - weights[columns.rank] / 2.0**64 + _overloaded(columns)
    return _chosen(columns, int(costs.argmin()), num_tokens, costs)


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


def _chosen(columns: RankViews, best: int, num_tokens: int, costs: Floats) -> Choice:
    """The rank at position `best`; its time is predicted alike whoever chooses it."""
    cached_tokens = columns.cached_at(best)
    rate = columns.rate_at(best)
    missing = num_tokens - cached_tokens - columns.free_tokens.item(best)
    wait_s = columns.waiting_tokens.item(best) / rate
    if missing > 0:  # as in `_admission_s`
        release_s, batch_slot_wait_s = columns.release_s.item(best), columns.batch_slot_wait_s.item(best)
        wait_s = max(wait_s, missing * release_s, batch_slot_wait_s)
    predicted_s = wait_s + (num_tokens - cached_tokens) / rate
    return Choice(columns.rank.item(best), cached_tokens, predicted_s, costs)


def _admission_s(columns: RankViews, num_tokens: int) -> Floats | None:
    """Seconds until each rank has memory and a place for the prompt; None where all have now.

        admission_r = max((uncached_r - free tokens_r) * release_s_r, place_wait_s_r), at least 0

    What is cached and held by nobody is free, and what is cached of this prompt needs no more room. How soon
    tokens and places become free, `RankLoad` says.
    """
    free = columns.free_tokens
    if free.item(free.argmin()) >= num_tokens:
        return None
    missing = num_tokens - columns.cached_tokens - free
    return np.maximum(np.maximum(missing, 0) * columns.release_s, columns.batch_slot_wait_s)


def admission_s(view: RankView, num_tokens: int) -> float:
    """Seconds until the rank has memory and a place for a prompt of `num_tokens`; 0 if it has now."""
    waits_s = _admission_s(RankViews.of([view]), num_tokens)
    return 0.0 if waits_s is None else waits_s.item(0)


def _overloaded(columns: RankViews) -> npt.NDArray[np.bool_]:
    """Which ranks have both over 32 requests more than the least loaded one, and over 1.1 times as many.

    So the least loaded rank never is.

    Source: SGLang's router, policy `cache_aware`, `balance_abs_threshold` and `balance_rel_threshold`
    (sgl-model-gateway/src/policies, defaults of `CacheAwareConfig`). It takes the least loaded rank as soon
    as the most loaded one has so much; here only ranks that have are passed over, so that one queue doesn't
    cost the other ranks' prefixes.
    """
    requests = columns.num_requests
    least = float(requests.min())
    return (requests - least > BALANCE_ABS_THRESHOLD) & (requests > BALANCE_REL_THRESHOLD * least)


def _two_positions(length: int, draw: float) -> Integers:
    """Two different positions, all ordered pairs equally likely; the only one where there is just one."""
    if length == 1:
        return np.zeros(1, np.int64)
    first, step = divmod(int(draw * length * (length - 1)), length - 1)
    return np.array([first, (first + 1 + step) % length])


def _all(columns: RankViews) -> Integers:
    return np.arange(len(columns))


def _lowest(positions: Integers, first: Floats, *then: Floats) -> int:
    """Of `positions`, the one with the lowest first key; among equals the lowest next; else the first."""
    *keys, last = first, *then
    for key in keys:
        values = key[positions]
        positions = positions[values == values.item(values.argmin())]
    return positions.item(last[positions].argmin())


def _mean(values: Floats | float) -> float:
    return values if isinstance(values, float) else float(values.mean())


def _harmonic_mean_wait(waiting_tokens: Floats, rate: Floats | float) -> float:
    """In seconds, over the ranks; 0 when nobody waits on one of them."""
    if waiting_tokens[waiting_tokens.argmin()] == 0:
        return 0.0
    return len(waiting_tokens) / float(np.add.reduce(rate / waiting_tokens))
