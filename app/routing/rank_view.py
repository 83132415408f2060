"""What a router knows of the ranks when it chooses: one `RankView` each, all of them as columns.

With a thousand ranks a thousand objects cost more than the choice itself. So the ranks' numbers are kept in
arrays, and a `RankView` is made only of a rank that somebody looks at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Literal, cast, overload

import numpy as np
import numpy.typing as npt

Trust = Literal["exact", "syncing", "stale"]
"""Whether a router knows a rank's cache, is finding out, or can't know."""

Integers = npt.NDArray[np.int64]
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
    """

    rank: int
    cached_tokens: int
    waiting_tokens: int
    num_requests: int
    prefill_rate: float
    assigned_tokens: int
    assigned_requests: int
    trust: Trust


@dataclass(frozen=True, slots=True, eq=False)
class RankViews(Sequence[RankView]):
    """The views of several ranks: `RankView`'s attributes with an element for each. Nobody changes them."""

    rank: Integers
    cached_tokens: Integers
    waiting_tokens: Integers
    num_requests: Integers
    prefill_rate: Floats
    assigned_tokens: Integers
    assigned_requests: Integers
    trust: Sequence[Trust]

    @classmethod
    def of(cls, views: Sequence[RankView]) -> RankViews:
        """The same views as columns."""
        if isinstance(views, RankViews):
            return views

        def integers(name: str) -> Integers:
            return np.array([getattr(view, name) for view in views], np.int64)

        return cls(
            rank=integers("rank"),
            cached_tokens=integers("cached_tokens"),
            waiting_tokens=integers("waiting_tokens"),
            num_requests=integers("num_requests"),
            prefill_rate=np.array([view.prefill_rate for view in views], np.float64),
            assigned_tokens=integers("assigned_tokens"),
            assigned_requests=integers("assigned_requests"),
            trust=[view.trust for view in views],
        )

    def of_ranks(self, ranks: Set[int]) -> RankViews:
        """The views of `ranks` alone, in the order that they have here."""
        positions = np.flatnonzero(np.isin(self.rank, list(ranks)))
        return RankViews(
            rank=self.rank[positions],
            cached_tokens=self.cached_tokens[positions],
            waiting_tokens=self.waiting_tokens[positions],
            num_requests=self.num_requests[positions],
            prefill_rate=self.prefill_rate[positions],
            assigned_tokens=self.assigned_tokens[positions],
            assigned_requests=self.assigned_requests[positions],
            trust=[self.trust[position] for position in positions.tolist()],
        )

    def position_of(self, rank: int) -> int:
        """Where `rank`, which is here, is."""
        return int(np.flatnonzero(self.rank == rank)[0])

    def __len__(self) -> int:
        return len(self.rank)

    def __iter__(self) -> Iterator[RankView]:
        return map(RankView, *(column.tolist() for column in self._numbers), self.trust)

    @overload
    def __getitem__(self, position: int) -> RankView: ...

    @overload
    def __getitem__(self, position: slice) -> list[RankView]: ...

    def __getitem__(self, position: int | slice) -> RankView | list[RankView]:
        if isinstance(position, slice):
            return list(self)[position]
        rank, cached, waiting, requests, rate, tokens, assigned = self._numbers
        return RankView(
            rank=int(rank[position]),
            cached_tokens=int(cached[position]),
            waiting_tokens=int(waiting[position]),
            num_requests=int(requests[position]),
            prefill_rate=float(rate[position]),
            assigned_tokens=int(tokens[position]),
            assigned_requests=int(assigned[position]),
            trust=self.trust[position],
        )

    @property
    def _numbers(self) -> tuple[Integers, Integers, Integers, Integers, Floats, Integers, Integers]:
        return (
            self.rank,
            self.cached_tokens,
            self.waiting_tokens,
            self.num_requests,
            self.prefill_rate,
            self.assigned_tokens,
            self.assigned_requests,
        )


def bits_to_mask(ranks: int, size: int) -> npt.NDArray[np.bool_]:
    """A bit set of ranks as `size` booleans by rank; ranks beyond are left out."""
    kept = ranks & ((1 << size) - 1)
    octets = np.frombuffer(kept.to_bytes((size + 7) // 8, "little"), np.uint8)
    return cast("npt.NDArray[np.bool_]", np.unpackbits(octets, count=size, bitorder="little").view(np.bool_))
