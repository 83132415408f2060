"""What each rank's cache space and time are worth, learnt from the requests that this router sends.

    choose ──▶ a few requests ──learn──▶ history, return times, bound traffic, pressure
       ▲                                                     │
       └────────────── columns ◀──────────── prices ─────────┘

The core hands over several requests at once: so a choice itself reads columns, and looks up whether its
prompt is a return, and whether it begins as many others do.

Nothing here is agreed upon between routers. What one counts itself is a share of what happens, in proportion
to the requests that it gets: rates are scaled by the others' reservations, all else is a quotient of what it
has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from app.routing.index.prefix_index import PrefixIndex
from app.routing.load.load_book import LoadBook
from app.routing.load.reservations import Reservations
from app.routing.membership import Membership, RoutableRanks
from app.routing.prices.bound_traffic import BoundTraffic
from app.routing.prices.cache_pressure import CacheFill, CachePressure
from app.routing.prices.prompt_history import PromptHistory
from app.routing.prices.return_times import ReturnTimes
from app.routing.rank_sets import Integers, ranks_in
from app.routing.rank_view import NO_PRICES, PRICE_ROWS, Floats, RankPrices, Tier

MIN_BRANCHES: Final = 4
"""A prefix that each of its holders has gone on from in so many ways is worth another copy."""
MIN_RETURNS: Final = 0.5
"""Where fewer new prompts return, copies of their prefix bring nothing that lasts."""
MAX_HOLDERS_ASKED: Final = 8
MAX_UTILISATION: Final = 0.9
"""Beyond it, delay to others is what it would be here: at full load it would be without bound."""


class SentRequest(NamedTuple):
    """A request that this router has sent to a rank.

    Attributes:
        block_hashes: the prompt's.
        block_size: tokens of one.
        rank: where it went.
        uncached_tokens: what that rank computes of it.
        tiers, ranks: which ranks held how much of it, as in `RankViews`.
        at: monotonic seconds.
    """

    block_hashes: Sequence[int]
    block_size: int
    rank: int
    uncached_tokens: int
    tiers: Sequence[Tier]
    ranks: Integers
    at: float


class CachePrices:
    """See the module.

    Args:
        index, load, reservations, membership: this router's; only read.
    """

    def __init__(
        self, index: PrefixIndex, load: LoadBook, reservations: Reservations, membership: Membership
    ) -> None:
        self._index = index
        self._load = load
        self._reservations = reservations
        self._membership = membership
        self._history = PromptHistory()
        self._returns = ReturnTimes()
        self._traffic = BoundTraffic()
        self._pressure = CachePressure()
        self._num_requests = 0
        self._values = np.zeros((len(NO_PRICES), 8))
        """Of each rank, in the rows of `PRICE_ROWS`. Never written to: others have parts of it."""
        self._are_lost = False
        """Whether some prompts return after they were evicted."""
        self._copies_pay = True
        """Whether enough new prompts return."""

    def columns(self, routable: RoutableRanks) -> Floats:
        """The prices of the routable ranks, as in `RankViews`."""
        missing = routable.size - self._values.shape[1]
        if missing > 0:
            self._values = np.pad(self._values, ((0, 0), (0, missing)))
        return self._values[:, routable.rows]

    def loss_row(self, block_hashes: Sequence[int]) -> int | None:
        """Which of `PRICE_ROWS` says what share of prompts like this one, of these full blocks, will be lost.

        None where no prompt is: every cache has room, or keeps prompts for longer than they stay away.
        """
        if not self._are_lost:
            return None
        if self._history.find(block_hashes) is None:
            return int(PRICE_ROWS.lost_if_new)
        return int(PRICE_ROWS.lost_if_return)

    def copyable_blocks(self, block_hashes: Sequence[int], matches: Sequence[tuple[int, int]]) -> int:
        """How many of a prompt's first blocks one more rank may compute without that counting against it.

        New prompts then begin anywhere, and those that return don't crowd the caches of a few ranks. What all
        of them begin with must have gone on in `MIN_BRANCHES` ways on each of its holders, on average: so of
        so many prompts at most one computes it again.

        Args:
            block_hashes: the prompt's blocks that may come from a cache.
            matches: what each rank holds of them, as `PrefixIndex.match` says.
        """
        if not self._copies_pay or not matches:
            return 0
        depth, holders = matches[0]
        block_hash = block_hashes[depth - 1]
        if not self._index.num_children(holders.bit_length() - 1, block_hash):
            return 0
        ranks = ranks_in(holders)
        asked = ranks[:: max(1, len(ranks) // MAX_HOLDERS_ASKED)].tolist()
        branches = sum(self._index.num_children(rank, block_hash) for rank in asked)
        return depth if branches >= MIN_BRANCHES * len(asked) else 0

    def learn(self, requests: Sequence[SentRequest], now: float) -> None:
        """Count requests that were chosen for, at least one, and work out the prices again."""
        self._traffic.fade(now)
        self._returns.fade(len(requests))
        self._num_requests += len(requests)
        for each in requests:
            self._count(each)
        routable = self._membership.routable
        if len(routable) > 1:
            values = np.zeros((len(NO_PRICES), routable.size))
            values[:, routable.rows] = self._prices(routable, requests[-1].block_size, now)
            self._values = values

    def drop(self, rank: int) -> None:
        """Forget what was learnt of `rank`, which is gone."""
        if rank < self._values.shape[1]:
            self._values = self._values.copy()
            self._values[:, rank] = NO_PRICES
        self._traffic.drop(rank)
        self._pressure.drop(rank)

    def _count(self, sent: SentRequest) -> None:
        tiers = sent.tiers
        longest = tiers[0][1] if tiers else 0
        if tiers and isinstance(tiers[0][0], int):
            held_elsewhere = tiers[1][1] if len(tiers) > 1 else 0
            self._traffic.add(sent.ranks.item(tiers[0][0]), longest - held_elsewhere)
        self._traffic.add_work(sent.uncached_tokens)
        self._pressure.add_sent(sent.rank, sent.uncached_tokens)
        if not sent.block_hashes:
            return
        returned = self._history.find(sent.block_hashes)
        if returned is not None:
            self._returns.add_return(sent.at - returned.seen_at, was_return=returned.is_return)
            lost_tokens = min(returned.num_blocks, len(sent.block_hashes)) * sent.block_size - longest
            self._pressure.add_lost(returned.rank, max(0, lost_tokens))
        self._returns.add(is_return=returned is not None)
        self._history.record(sent.block_hashes, sent.rank, sent.at, returned)

    def _prices(self, routable: RoutableRanks, block_size: int, now: float) -> RankPrices[Floats]:
        ranks, size = routable.rows, routable.size
        fill = self._fill(routable, block_size)
        kept_s = self._pressure.observe(ranks, size, fill, now)
        prices = self._pressure.prices(ranks, size, fill.capacity * block_size)
        lost_if_new, lost_if_return = self._returns.later_than(kept_s)
        eviction_prices = np.where(np.isinf(kept_s), 0.0, prices)
        self._copies_pay = self._returns.share_of_new >= MIN_RETURNS
        self._are_lost = any(each.any() for each in (eviction_prices, lost_if_new, lost_if_return))
        bound_load, bound_tokens = self._bound(routable)
        return RankPrices(
            eviction_price=eviction_prices,
            bound_load=bound_load,
            bound_tokens=bound_tokens,
            lost_if_new=lost_if_new,
            lost_if_return=lost_if_return,
        )

    def _bound(self, routable: RoutableRanks) -> tuple[Floats, Floats]:
        """Seconds of prefill a second that prefixes held once save, with what delay to them grows to."""
        rate = self._load.prefill_rates(routable)
        capacity = rate * len(routable) if isinstance(rate, float) else float(rate.sum())
        share = 1 + self._reservations.num_from_peers / self._num_requests
        utilisation = min(share * self._traffic.tokens_per_s / capacity, MAX_UTILISATION)
        per_s, tokens = self._traffic.rates(routable.rows, routable.size)
        return 2 * share / (1 - utilisation) * per_s * tokens / rate, 2 * tokens

    def _fill(self, routable: RoutableRanks, block_size: int) -> CacheFill:
        reports = [self._load.last_report(rank) for rank in routable]
        capacity = [each.max_total_num_tokens / block_size if each else 0.0 for each in reports]
        held = [self._index.num_blocks_of(rank) for rank in routable]
        removed = [self._index.num_removed_of(rank) for rank in routable]
        return CacheFill(np.array(capacity), np.array(held, np.float64), np.array(removed, np.float64))
