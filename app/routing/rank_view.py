"""What a router knows of the ranks when it chooses: one `RankView` each, all of them as columns.

With a thousand ranks a thousand objects cost more than the choice itself. So the ranks' numbers are kept in
arrays, and a `RankView` is made only of a rank that is looked at on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from math import inf
from typing import Final, Generic, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt

from app.events.following.sync_status import Trust
from app.routing.membership import Positions
from app.routing.rank_sets import Integers

Floats = npt.NDArray[np.float64]
Value = TypeVar("Value")
Tier = tuple[Positions, int]
"""Ranks that hold equally much of a prompt, and how many tokens that is."""


class RankCounts(NamedTuple, Generic[Value]):
    """What is counted of every rank, whatever the prompt.

    A number that policies should see besides these is declared here and in `UNKNOWN`, and `RankLoad.write`
    writes it; everything between passes on whatever is declared.

    Attributes:
        waiting_tokens: prompt tokens that the rank must compute before it gets to this one.
        num_requests: requests running or waiting there, or on their way.
        assigned_tokens: uncached tokens sent there so far.
        assigned_requests: requests sent there so far.
        free_tokens: of the cache, what no request there holds, waits for or was sent for, evictable blocks
            included; below 0 where more is wanted than there is, at most 0 where the batch is full, infinite
            where nothing is held or the rank doesn't say.
        batch_slot_wait_s: seconds until there is a place in the batch.
        release_s: seconds from one token's release there to the next.
    """

    waiting_tokens: Value
    num_requests: Value
    assigned_tokens: Value
    assigned_requests: Value
    free_tokens: Value
    batch_slot_wait_s: Value
    release_s: Value


class RankPrices(NamedTuple, Generic[Value]):
    """What it costs others, or later, to send a prompt to a rank now: computed in `app.routing.prices`.

    Attributes:
        eviction_price: tokens that must be computed again for each token that is added to its cache.
        bound_load: twice the seconds of prefill, each second, that the rank saves by prefixes that it alone
            holds, times the requests that are delayed in the end for each that is delayed at first.
        bound_tokens: twice the tokens that it saves each of these requests, on average.
        lost_if_new: share of new prompts that return after the rank has evicted them.
        lost_if_return: the same of prompts that have returned before.
    """

    eviction_price: Value
    bound_load: Value
    bound_tokens: Value
    lost_if_new: Value
    lost_if_return: Value


UNKNOWN: Final = RankCounts(
    waiting_tokens=0.0,
    num_requests=0.0,
    assigned_tokens=0.0,
    assigned_requests=0.0,
    free_tokens=inf,
    batch_slot_wait_s=0.0,
    release_s=0.0,
)
"""The counts of a rank that has reported nothing and was sent nothing."""
ROWS: Final = RankCounts(*range(len(UNKNOWN)))
"""Where each count is in an array with a row for each: `counts[ROWS.free_tokens]` has one of every rank."""
NO_PRICES: Final = RankPrices(0.0, 0.0, 0.0, 0.0, 0.0)
"""The prices of a rank that nothing was learnt of."""
PRICE_ROWS: Final = RankPrices(*range(len(NO_PRICES)))
"""The same for an array of prices."""


@dataclass(frozen=True)
class RankView:
    """What a router knows of one rank when it chooses.

    Attributes:
        rank: the rank's number.
        cached_tokens: tokens of this prompt that the rank needn't compute; less than the prompt's.
        counts: how busy the rank is.
        prefill_rate: uncached prompt tokens per second, above 0.
        trust: whether what its cache holds is known; unless exact or partial, `cached_tokens` is 0.
        prices: what it costs others to use the rank.
    """

    rank: int
    cached_tokens: int
    counts: RankCounts[float]
    prefill_rate: float
    trust: Trust
    prices: RankPrices[float] = NO_PRICES


@dataclass(slots=True, eq=False)
class RankViews(Sequence[RankView]):
    """The views of several ranks: `RankView`'s attributes with an element for each. Never change.

    A router has the lowest rank first.

    Attributes:
        rank: numbers.
        tiers: what the ranks hold of the prompt, most first; one that holds nothing is in none.
        counts: shape (rows of `ROWS`, ranks). They are floats, which hold counts exactly up to 2**53: numpy
            would convert integers in every operation.
        prefill_rate: one number where all ranks have the same.
        trust: in each one's cache.
        prices: shape (rows of `PRICE_ROWS`, ranks).
    """

    rank: Integers
    tiers: Sequence[Tier]
    counts: Floats
    prefill_rate: Floats | float
    trust: Sequence[Trust]
    prices: Floats

    @classmethod
    def of(cls, views: Sequence[RankView]) -> RankViews:
        """The same views, at least one, as columns."""
        return cls(
            rank=np.array([view.rank for view in views], np.int64),
            tiers=_tiers([view.cached_tokens for view in views]),
            counts=np.array([view.counts for view in views], np.float64).transpose(),
            prefill_rate=np.array([view.prefill_rate for view in views], np.float64),
            trust=[view.trust for view in views],
            prices=np.array([view.prices for view in views], np.float64).transpose(),
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
            prices=self.prices[:, positions],
        )

    @property
    def cached_tokens(self) -> Floats:
        """Of the prompt, on each rank."""
        cached_tokens = np.zeros(len(self))
        for positions, tokens in self.tiers:
            cached_tokens[positions] = tokens
        return cached_tokens

    def uncached_tokens(self, num_tokens: int) -> Floats:
        """The rest of a prompt of `num_tokens`, on each rank."""
        uncached_tokens = np.empty(len(self))
        uncached_tokens.fill(num_tokens)
        for positions, tokens in self.tiers:
            uncached_tokens[positions] = num_tokens - tokens
        return uncached_tokens

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
        return RankView(
            rank=self.rank.item(position),
            cached_tokens=self.cached_at(position),
            counts=RankCounts(*self.counts[:, position].tolist()),
            prefill_rate=self.rate_at(position),
            trust=self.trust[position],
            prices=RankPrices(*self.prices[:, position].tolist()),
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
