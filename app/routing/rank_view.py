"""What a router knows of the ranks when it chooses: one `RankView` each, all of them as columns.

With a thousand ranks a thousand objects cost more than the choice itself. So the ranks' numbers are kept in
arrays, and a `RankView` is made only of a rank that somebody looks at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import cast, overload

import numpy as np
import numpy.typing as npt

from app.routing.membership import Trust

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]


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


@dataclass(slots=True, eq=False)
class RankViews(Sequence[RankView]):
    """The views of several ranks: `RankView`'s attributes with an element for each. Nobody changes them.

    Counts are floats, which hold them exactly up to 2**53: numpy would convert integers in every operation.
    `prefill_rate` is one number where all ranks have the same.
    """

    rank: Integers
    cached_tokens: Floats
    waiting_tokens: Floats
    num_requests: Floats
    prefill_rate: Floats | float
    assigned_tokens: Floats
    assigned_requests: Floats
    trust: Sequence[Trust]

    @classmethod
    def of(cls, views: Sequence[RankView]) -> RankViews:
        """The same views as columns."""
        if isinstance(views, RankViews):
            return views

        def column(name: str) -> Floats:
            return np.array([getattr(view, name) for view in views], np.float64)

        return cls(
            rank=np.array([view.rank for view in views], np.int64),
            cached_tokens=column("cached_tokens"),
            waiting_tokens=column("waiting_tokens"),
            num_requests=column("num_requests"),
            prefill_rate=column("prefill_rate"),
            assigned_tokens=column("assigned_tokens"),
            assigned_requests=column("assigned_requests"),
            trust=[view.trust for view in views],
        )

    def of_ranks(self, ranks: Set[int]) -> RankViews:
        """The views of `ranks` alone, in the order that they have here."""
        positions = np.flatnonzero(np.isin(self.rank, list(ranks)))
        rate = self.prefill_rate
        return RankViews(
            rank=self.rank[positions],
            cached_tokens=self.cached_tokens[positions],
            waiting_tokens=self.waiting_tokens[positions],
            num_requests=self.num_requests[positions],
            prefill_rate=rate if isinstance(rate, float) else rate[positions],
            assigned_tokens=self.assigned_tokens[positions],
            assigned_requests=self.assigned_requests[positions],
            trust=[self.trust[position] for position in positions.tolist()],
        )

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
            rank=int(self.rank[position]),
            cached_tokens=int(self.cached_tokens[position]),
            waiting_tokens=int(self.waiting_tokens[position]),
            num_requests=int(self.num_requests[position]),
            prefill_rate=self.rate_at(position),
            assigned_tokens=int(self.assigned_tokens[position]),
            assigned_requests=int(self.assigned_requests[position]),
            trust=self.trust[position],
        )

    def rate_at(self, position: int) -> float:
        """The prefill rate of the rank at `position`."""
        rate = self.prefill_rate
        return rate if isinstance(rate, float) else rate.item(position)


@lru_cache(maxsize=1024)
def bits_to_mask(ranks: int, size: int) -> Booleans:
    """A bit set of ranks as `size` booleans by rank; ranks beyond are left out. To be read only.

    The same sets come again and again: the ranks that hold a prefix that many requests share.
    """
    kept = ranks & ((1 << size) - 1)
    octets = np.frombuffer(kept.to_bytes((size + 7) // 8, "little"), np.uint8)
    return cast("Booleans", np.unpackbits(octets, count=size, bitorder="little").view(np.bool_))
