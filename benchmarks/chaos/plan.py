"""Which faults happen when: a seed's plan, the same at every run.

    storm            storm                 storm
    ├─┬──┬───────────┼──┬─┬────────────────┼─┬─ … ─┤ calm ┤ quiet
    faults overlap   faults overlap

Faults come in storms, so that several are there at once: a replica that dies takes seconds to come back. A
long run ends in a calm: traffic without faults, in which every process lives long enough to show whether it
grows.
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
LONG_S = 1200.0
"""Runs of this length or more have a calm."""
CALM_S = 600.0


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at_s: seconds after the traffic's beginning.
        kind: what happens.
        pick: 0 to 1: which of those that it can happen to, in the order of their ids.
        lasts: of a process that stands still: for how long, as a multiple of `engine.stall_timeout_s`.
        dp_size: of a `resize`: how many ranks are wanted.
    """

    at_s: float
    kind: FaultKind
    pick: float = 0.0
    lasts: float = 0.0
    dp_size: int = 0


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
    planner = _Planner(random.Random(seed), dp_sizes)
    end_s = storms_end_s(seconds)
    storm_s = FIRST_S
    while storm_s < end_s:
        may_be_alone = storm_s + PAUSE_S[1] < end_s or end_s == seconds - QUIET_S
        planner.storm(storm_s, min(storm_s + STORM_S, end_s), list(kinds), may_be_alone=may_be_alone)
        storm_s += planner.rng.uniform(*PAUSE_S)
    return sorted(planner.faults, key=lambda fault: fault.at_s)


def storms_end_s(seconds: float) -> float:
    """Seconds after the beginning of a run's traffic from which there are no new faults."""
    return seconds - (CALM_S if seconds >= LONG_S else QUIET_S)


class _Planner:
    """A plan while it is made.

    Attributes:
        rng: of everything random.
        faults: so far.
    """

    def __init__(self, rng: random.Random, dp_sizes: Sequence[int]) -> None:
        self.rng = rng
        self.faults: list[Fault] = []
        self._dp_sizes = dp_sizes
        self._dp_size = dp_sizes[0]
        self._bag: list[FaultKind] = []

    def storm(self, from_s: float, to_s: float, kinds: Sequence[FaultKind], *, may_be_alone: bool) -> None:
        """Add some faults between two times. After one that leaves one rank the next begins with a resize."""
        for number in range(self.rng.choice(STORM_SIZES)):
            is_alone = self._dp_size == 1 and not number
            kind = "resize" if is_alone and "resize" in kinds else self._draw(kinds)
            at_s, pick, share = self.rng.uniform(from_s, to_s), self.rng.random(), self.rng.random()
            lasts, dp_size = 0.0, 0
            if kind == "stop_rank_shortly":
                lasts = 0.1 + 0.6 * share
            elif kind in ("stop_rank_for_long", "hang_engine"):
                lasts = 1.5 + 2.5 * share
            elif kind == "resize":
                others = [size for size in self._dp_sizes if size != self._dp_size]
                dp_size = self.rng.choice([size for size in others if size > 1 or may_be_alone])
                self._dp_size = dp_size
            self.faults.append(Fault(round(at_s, 2), kind, round(pick, 4), round(lasts, 2), dp_size))

    def _draw(self, kinds: Sequence[FaultKind]) -> FaultKind:
        """One of `kinds` from the bag, which is filled when it has none of them."""
        if not any(kind in kinds for kind in self._bag):
            self._bag = [kind for kind in kinds for _ in range(SHARES.get(kind, 1))]
            self.rng.shuffle(self._bag)
        return self._bag.pop(next(place for place, kind in enumerate(self._bag) if kind in kinds))


def num_overlapping(intervals: Sequence[tuple[float, float]]) -> int:
    """How many pairs of intervals, each from a beginning to an end, have a moment in common."""
    ordered = sorted(intervals)
    return sum(
        later[0] < earlier[1] for place, earlier in enumerate(ordered) for later in ordered[place + 1 :]
    )
