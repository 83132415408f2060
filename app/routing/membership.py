"""Which ranks can take requests, and the trust in what is known of each one's cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from app.events.following.sync_status import Trust
from app.routing.rank_sets import Integers, ranks_in

Positions = int | slice | Integers
"""Elements of an array with one for each rank: one, all, or those of an ascending array of positions."""


class RoutableRanks(Mapping[int, Trust]):
    """The ranks that can take requests at one moment, lowest first, each with its trust. Never changes.

    Attributes:
        ranks: their numbers.
        trusts: theirs, in the same order.
        exact: bit set of the ranks whose cache is known.
        size: one more than the highest rank's number; 0 when there is none.
        rows: picks their elements from an array that has one for every rank up to the highest.
    """

    def __init__(self, trusts: Mapping[int, Trust]) -> None:
        self._trust_of = dict(sorted(trusts.items()))
        self.ranks: Final = np.array(list(self._trust_of), np.int64)
        self.trusts: Final = tuple(self._trust_of.values())
        self.exact: Final = sum(1 << rank for rank, trust in self._trust_of.items() if trust == "exact")
        self.size: Final = int(self.ranks[-1]) + 1 if trusts else 0
        self._is_dense = self.size == len(trusts)
        self._all_ranks = sum(1 << rank for rank in trusts)
        self.rows: Final = slice(self.size) if self._is_dense else self.ranks

    def positions(self, ranks: int) -> Positions:
        """Where the ranks of a bit set, at least one of these and no others, are."""
        if ranks == self._all_ranks:
            return slice(None)
        if ranks & (ranks - 1):
            members = ranks_in(ranks)
            return members if self._is_dense else self.ranks.searchsorted(members)
        rank = ranks.bit_length() - 1
        return rank if self._is_dense else int(self.ranks.searchsorted(rank))

    def __getitem__(self, rank: int) -> Trust:
        return self._trust_of[rank]

    def __iter__(self) -> Iterator[int]:
        return iter(self._trust_of)

    def __len__(self) -> int:
        return len(self._trust_of)


class Membership:
    """The ranks that can take requests, as they come and go, and as the trust in them changes."""

    def __init__(self) -> None:
        self._trusts: dict[int, Trust] = {}
        self._routable: RoutableRanks | None = RoutableRanks({})
        """None after a change, until it is read."""

    @property
    def routable(self) -> RoutableRanks:
        """The ranks as they are now; the same object until something changes."""
        if self._routable is None:
            self._routable = RoutableRanks(self._trusts)
        return self._routable

    def set(self, rank: int, trust: Trust) -> None:
        """`rank` can take requests, and its cache is known as well as `trust` says."""
        if self._trusts.get(rank) != trust:
            self._trusts[rank] = trust
            self._routable = None

    def remove(self, rank: int) -> None:
        """`rank` can't take requests any more, if it could."""
        if self._trusts.pop(rank, None) is not None:
            self._routable = None
