"""What a router knows of the ranks when it chooses: one `RankView` each, all of them as columns.

With a thousand ranks a thousand objects cost more than the choice itself. So the ranks' numbers are kept in
arrays, and a `RankView` is made only of a rank that somebody looks at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from math import inf
from typing import Final, overload

import numpy as np
import numpy.typing as npt

from app.events.following.sync_status import Trust
from app.routing.membership import Positions
from app.routing.rank_sets import Integers

Floats = npt.NDArray[np.float64]


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
        free_tokens: of the cache, what no request there holds, waits for or was sent for, evictable blocks
            included; below 0 where more is wanted than there is, at most 0 where the batch is full, infinite
            where nothing is held or the rank doesn't say.
        batch_slot_wait_s: seconds until there is a place in the batch.
        release_s: seconds from one token's release there to the next.
    """

    rank: int
    cached_tokens: int
    waiting_tokens: int
    num_requests: int
    prefill_rate: float
    assigned_tokens: int
    assigned_requests: int
    trust: Trust
    free_tokens: float = inf
    batch_slot_wait_s: float = 0.0
    release_s: float = 0.0


Tier = tuple[Positions, int]
"""Ranks that hold equally much of a prompt, and how many tokens that is."""
COUNTS: Final = (
    "waiting_tokens",
    "num_requests",
    "assigned_tokens",
    "assigned_requests",
    "free_tokens",
    "batch_slot_wait_s",
    "release_s",
)
"""What is counted for each rank: the rows of `RankViews.counts`."""


@dataclass(slots=True, eq=False)
class RankViews(Sequence[RankView]):
    """The views of several ranks: `RankView`'s attributes with an element for each, and nobody changes them.

    A router has the lowest rank first.

    Attributes:
        rank: numbers.
        tiers: what the ranks hold of the prompt, most first; one that holds nothing is in none.
        counts: a row for each of `COUNTS`. They are floats, which hold counts exactly up to 2**53: numpy
            would convert integers in every operation.
        prefill_rate: one number where all ranks have the same.
        trust: in each one's cache.
    """

    rank: Integers
    tiers: Sequence[Tier]
    counts: Floats
    prefill_rate: Floats | float
    trust: Sequence[Trust]

    @classmethod
    def of(cls, views: Sequence[RankView]) -> RankViews:
        """The same views as columns."""
        if isinstance(views, RankViews):
            return views
        return cls(
            rank=np.array([view.rank for view in views], np.int64),
            tiers=_tiers([view.cached_tokens for view in views]),
            counts=np.array([[getattr(view, name) for view in views] for name in COUNTS], np.float64),
            prefill_rate=np.array([view.prefill_rate for view in views], np.float64),
            trust=[view.trust for view in views],
        )

    def of_ranks(self, ranks: Set[int]) -> RankViews:
        """The views of `ranks` alone, in the order that they have here."""
        positions = np.flatnonzero(np.isin(self.rank, list(ranks)))
        rate = self.prefill_rate
        return RankViews(
            rank=self.rank[positions],
            tiers=_tiers(self.cached_tokens[positions].tolist()),
            counts=self.counts[:, positions],
            prefill_rate=rate if isinstance(rate, float) else rate[positions],
            trust=[self.trust[position] for position in positions.tolist()],
        )

    @property
    def cached_tokens(self) -> Floats:
        """Of the prompt, on each rank."""
        cached_tokens = np.zeros(len(self))
        for positions, tokens in self.tiers:
            cached_tokens[positions] = tokens
        return cached_tokens

    @property
    def waiting_tokens(self) -> Floats:
        """A row of `counts`, like those below."""
        return self._row(0)

    @property
    def num_requests(self) -> Floats:
        return self._row(1)

    @property
    def assigned_tokens(self) -> Floats:
        return self._row(2)

    @property
    def assigned_requests(self) -> Floats:
        return self._row(3)

    @property
    def free_tokens(self) -> Floats:
        return self._row(4)

    @property
    def batch_slot_wait_s(self) -> Floats:
        return self._row(5)

    @property
    def release_s(self) -> Floats:
        return self._row(6)

    def _row(self, number: int) -> Floats:
        row: Floats = self.counts[number]
        return row

    def __len__(self) -> int:
        return len(self.rank)

    def __iter__(self) -> Iterator[RankView]:
        for position in range(len(self)):
            yield self[position]

    @overload
    def __getitem__(self, position: int) -> RankView: ...

    @overload
    def __getitem__(self, position: slice) -> list[RankView]: ...

    def __getitem__(self, position: int | slice) -> RankView | list[RankView]:
        if isinstance(position, slice):
            return list(self)[position]
        waiting, requests, tokens, assigned, free, place, release = self.counts[:, position].tolist()
        return RankView(
            rank=self.rank.item(position),
            cached_tokens=self.cached_at(position),
            waiting_tokens=int(waiting),
            num_requests=int(requests),
            prefill_rate=self.rate_at(position),
            assigned_tokens=int(tokens),
            assigned_requests=int(assigned),
            trust=self.trust[position],
            free_tokens=free,
            batch_slot_wait_s=place,
            release_s=release,
        )

    def cached_at(self, position: int) -> int:
        """The cached tokens of the rank at `position`."""
        for positions, tokens in self.tiers:
            if _is_in(position, positions):
                return tokens
        return 0

    def rate_at(self, position: int) -> float:
        """The prefill rate of the rank at `position`."""
        rate = self.prefill_rate
        return rate if isinstance(rate, float) else rate.item(position)


def _tiers(cached_tokens: Sequence[float]) -> list[Tier]:
    column = np.array(cached_tokens)
    held = sorted(set(cached_tokens) - {0}, reverse=True)
    return [(np.flatnonzero(column == tokens), int(tokens)) for tokens in held]


def _is_in(position: int, positions: Positions) -> bool:
    if isinstance(positions, slice):
        return True
    if isinstance(positions, int):
        return position == positions
    found = int(positions.searchsorted(position))
    return found < len(positions) and positions.item(found) == position
