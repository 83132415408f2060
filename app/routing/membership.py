"""Which ranks can take requests, with the trust in what is known of each one's cache, and which can't now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from app.events.following.sync_status import CREDITED, Trust
from app.routing.rank_sets import Integers, ranks_in

Positions = int | slice | Integers
"""Elements of an array with one for each rank: one, all, or those of an ascending array of positions."""


class RoutableRanks(Mapping[int, Trust]):
    """The ranks that can take requests at one moment, lowest first, each with its trust. Never changes.

    Attributes:
        ranks: their numbers.
        trusts: theirs, in the same order.
        credited: bit set of the ranks that hold every block that is known of them.
        size: one more than the highest rank's number; 0 when there is none.
        rows: picks their elements from an array that has one for every rank up to the highest.
        unavailable: ranks that are followed but can take no requests now, lowest first, and why not.
    """

    def __init__(self, trusts: Mapping[int, Trust], unavailable: Mapping[int, str] | None = None) -> None:
        self._trust_of = dict(sorted(trusts.items()))
        self.ranks: Final = np.array(list(self._trust_of), np.int64)
        self.trusts: Final = tuple(self._trust_of.values())
        self.credited: Final = sum(1 << rank for rank, trust in self._trust_of.items() if trust in CREDITED)
        self.unavailable: Final[Mapping[int, str]] = dict(sorted((unavailable or {}).items()))
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
        self._unavailable: dict[int, str] = {}
        """No rank is in both."""
        self._routable: RoutableRanks | None = RoutableRanks({})
        """None after a change, until it is read."""

    @property
    def routable(self) -> RoutableRanks:
        """The ranks as they are now; the same object until something changes."""
        if self._routable is None:
            self._routable = RoutableRanks(self._trusts, self._unavailable)
        return self._routable

    def set(self, rank: int, trust: Trust) -> None:
        """`rank` can take requests, and its cache is known as well as `trust` says."""
        if self._trusts.get(rank) != trust:
            self._unavailable.pop(rank, None)
            self._trusts[rank] = trust
            self._routable = None

    def set_unavailable(self, rank: int, reason: str) -> None:
        """`rank` is still there, but can take no requests for now, because of `reason`."""
        if self._unavailable.get(rank) != reason:
            self._trusts.pop(rank, None)
            self._unavailable[rank] = reason
            self._routable = None

    def remove(self, rank: int) -> None:
        """`rank` isn't there any more, if it was."""
        if rank in self._trusts or rank in self._unavailable:
            self._trusts.pop(rank, None)
            self._unavailable.pop(rank, None)
            self._routable = None
