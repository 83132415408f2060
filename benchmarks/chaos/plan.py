"""Which faults happen when: a seed's plan, the same at every run.

    storm            storm                 storm
    ├─┬──┬───────────┼──┬─┬────────────────┼─┬─ … ─┤ quiet
    faults overlap   faults overlap

Faults come in storms, so that several are there at once: a replica that dies takes seconds to come back.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

FaultKind = Literal[
    "kill_rank",
    "kill_router",
    "kill_ingress",
    "kill_controller",
    "stop_rank_shortly",
    "stop_rank_for_long",
    "hang_engine",
    "redeploy",
    "resize",
    "wrong_deploy",
]
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
DEPLOYS: frozenset[FaultKind] = frozenset({"redeploy", "resize", "wrong_deploy"})
"""Faults that change what is deployed; one at a time."""

SHARES: Mapping[FaultKind, int] = {"kill_rank": 3, "kill_router": 2, "stop_rank_shortly": 2}
"""How often each kind is there in one round of all kinds, where it isn't once."""
FIRST_S = 2.0
"""From the traffic's beginning to the first fault."""
STORM_SIZES = (2, 3)
STORM_S = 4.0
"""Within these seconds the faults of one storm begin."""
PAUSE_S = (10.0, 20.0)
"""From one storm's beginning to the next one's."""
QUIET_S = 5.0
"""Before the traffic's end, without a new fault."""
DEPLOYS_ALL_ALONG_S = 600.0
"""Runs that last longer deploy in their first half only, and spare in the second half the oldest process of
each kind: a leak shows in a process that lives."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at_s: seconds after the traffic's beginning.
        kind: what happens.
        pick: 0 to 1: which of those that it can happen to, in the order of their ids.
        lasts: of a process that stands still: for how long, as a multiple of `engine.stall_timeout_s`.
        dp_size: of a `resize`: how many ranks are wanted.
        spares_oldest: whether it must not happen to the oldest that it could happen to.
    """

    at_s: float
    kind: FaultKind
    pick: float = 0.0
    lasts: float = 0.0
    dp_size: int = 0
    spares_oldest: bool = False


def make_plan(
    seed: int, seconds: float, dp_sizes: Sequence[int], kinds: Collection[FaultKind] = KINDS
) -> list[Fault]:
    """The faults of a run, in the order of their times.

    Args:
        seed: of everything random.
        seconds: that the traffic lasts.
        dp_sizes: the numbers of ranks that a `resize` chooses from; the first is what the run begins with.
        kinds: those that may happen; every one does before any does again.
    """
    rng = random.Random(seed)
    is_long = seconds > DEPLOYS_ALL_ALONG_S
    sizes, bag = [dp_sizes[0]], list[FaultKind]()
    faults: list[Fault] = []
    storm_s = FIRST_S
    while storm_s < seconds - QUIET_S:
        is_late = is_long and storm_s > seconds / 2
        for _ in range(rng.choice(STORM_SIZES)):
            at_s = storm_s + rng.uniform(0, min(STORM_S, seconds - QUIET_S - storm_s))
            kind = _draw(rng, bag, [kind for kind in kinds if not (is_late and kind in DEPLOYS)])
            faults.append(_fault(rng, at_s, kind, sizes, dp_sizes, is_late))
        storm_s += rng.uniform(*PAUSE_S)
    return sorted(faults, key=lambda fault: fault.at_s)


def _draw(rng: random.Random, bag: list[FaultKind], kinds: Sequence[FaultKind]) -> FaultKind:
    """One of `kinds` from the bag, which is filled when it has none of them."""
    if not any(kind in kinds for kind in bag):
        bag[:] = [kind for kind in kinds for _ in range(SHARES.get(kind, 1))]
        rng.shuffle(bag)
    return bag.pop(next(place for place, kind in enumerate(bag) if kind in kinds))


def _fault(
    rng: random.Random,
    at_s: float,
    kind: FaultKind,
    sizes: list[int],
    dp_sizes: Sequence[int],
    spares_oldest: bool,
) -> Fault:
    pick, share = rng.random(), rng.random()
    lasts, dp_size = 0.0, 0
    if kind == "stop_rank_shortly":
        lasts = 0.1 + 0.6 * share
    elif kind in ("stop_rank_for_long", "hang_engine"):
        lasts = 1.5 + 2.5 * share
    elif kind == "resize":
        dp_size = rng.choice([size for size in dp_sizes if size != sizes[-1]])
        sizes.append(dp_size)
    return Fault(round(at_s, 2), kind, round(pick, 4), round(lasts, 2), dp_size, spares_oldest)


def num_overlapping(intervals: Sequence[tuple[float, float]]) -> int:
    """How many pairs of intervals, each from a beginning to an end, have a moment in common."""
    ordered = sorted(intervals)
    return sum(
        later[0] < earlier[1] for place, earlier in enumerate(ordered) for later in ordered[place + 1 :]
    )
