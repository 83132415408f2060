"""How long each rank keeps what isn't used, and what its evictions cost.

    kept_s   = capacity / evictions a second          for a rank that is full; infinite where there is room
    price_r  = tokens evicted there that were asked again / tokens sent there to be computed

A block that isn't used again stays in a least-recently-used cache until about as many others have come as it
has room for: the "characteristic time", by which Che's approximation takes hits and misses of such a cache to
be decided. A full rank evicts a token for each that it computes: so the price says how much must be computed
again for a token that is added. It is drawn towards the mean of all ranks, since what one evicts in a short
time is a few prompts. Both look back over what a cache holds, or a tenth of it.

What is evicted is seen in the rank's events; what was asked again, by a prompt's return that finds less of it
cached, anywhere, than there was.

Source: H. Che, Y. Tung, Z. Wang, "Hierarchical Web Caching Systems: Modeling, Design and Experimental
Results", 2002.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from app.routing.prices.columns import Columns
from app.routing.rank_sets import Integers
from app.routing.rank_view import Floats

FULL: Final = 0.97
"""Of a cache's capacity; running requests may hold the rest."""
MEAN_WEIGHT: Final = 2.0
"""Weight of all ranks' mean price in each one's, in parts of the capacity."""
WINDOW: Final = 0.1
"""Evictions over which their rate is measured, in parts of the capacity."""


class CacheFill(NamedTuple):
    """What is known of several ranks' caches, one element for each.

    Attributes:
        capacity: blocks; 0 where the rank doesn't say.
        held: blocks that it is known to hold.
        removed: blocks that its events have removed since it was followed.
    """

    capacity: Floats
    held: Floats
    removed: Floats


class CachePressure:
    """See the module."""

    def __init__(self) -> None:
        self._tokens = Columns(2)
        """Sent to be computed; evicted and asked again."""
        self._evictions = Columns(4)
        """Fading number, fading seconds that they took, when the last ones were seen, how many there were."""

    def add_sent(self, rank: int, uncached_tokens: int) -> None:
        """`rank` is to compute this."""
        self._tokens.make_room(rank)
        self._tokens.values[0, rank] += uncached_tokens

    def add_lost(self, rank: int, tokens: int) -> None:
        """So many tokens that `rank` held, and no rank holds now, were asked again."""
        self._tokens.make_room(rank)
        self._tokens.values[1, rank] += tokens

    def drop(self, rank: int) -> None:
        """The rank is another one now."""
        self._tokens.drop(rank)
        self._evictions.drop(rank)

    def observe(self, ranks: slice | Integers, size: int, fill: CacheFill, now: float) -> Floats:
        """Take what is known of the caches; returns how long each keeps what isn't used, in seconds."""
        self._evictions.make_room(size - 1)
        number, seconds, since, before = self._evictions.values[:, ranks]
        new = fill.removed - before
        has_restarted = new < 0
        new = np.where(has_restarted, fill.removed, new)
        is_first = before == 0
        kept = np.exp(-new / np.maximum(WINDOW * fill.capacity, 1))
        elapsed = np.where(is_first, 0.0, now - since)
        has_new = new > 0
        number = number * kept + new
        seconds = seconds * kept + np.where(has_new, elapsed, 0.0)
        since = np.where(has_new | is_first, now, since)
        self._evictions.values[:, ranks] = number, seconds, since, fill.removed
        is_full = (fill.held >= FULL * fill.capacity) & (number > 0) & (fill.capacity > 0)
        lasting = seconds + (now - since)
        return np.where(is_full, fill.capacity * lasting / np.maximum(number, 1e-9), np.inf)

    def prices(self, ranks: slice | Integers, size: int, capacity_tokens: Floats) -> Floats:
        """Tokens that must be computed again for each that is added to a full cache, at most 1."""
        self._tokens.make_room(size - 1)
        sent, lost = self._tokens.values[:, ranks]
        scale = np.minimum(1.0, capacity_tokens / np.maximum(sent, 1))
        sent, lost = sent * scale, lost * scale
        self._tokens.values[:, ranks] = sent, lost
        mean = lost.sum() / max(sent.sum(), 1)
        weight = np.maximum(MEAN_WEIGHT * capacity_tokens, 1)
        result: Floats = np.minimum((lost + weight * mean) / (sent + weight), 1.0)
        return result
