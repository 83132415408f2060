"""What one router knows of the ranks, and its decisions: index, load, reservations, membership, chooser.

    events, load reports ──▶ index, load, membership ──▶ chooser ──▶ decision
                                  ▲                                     │
                                  └──────────── reservations ◀──────────┘

Looking and reserving can't be split: between them another request would see the same idle rank and follow. On
the router's single-threaded event loop, a function without `await` is that one step, with respect to other
requests and to arriving events alike.
"""

from __future__ import annotations

from random import Random
from typing import Final

from app.routing.decisions.chooser import Chooser
from app.routing.decisions.decision import Decision, Prompt
from app.routing.index.prefix_index import PrefixIndex
from app.routing.load.load_book import LoadBook
from app.routing.load.reservations import Reservations
from app.routing.membership import Membership
from app.routing.policies.registry import find_policy
from app.routing.prices.cache_prices import CachePrices, SentRequest
from app.settings.routing import RoutingConfig

LEARN_REQUESTS: Final = 32
"""Requests that the prices count at once; an eighth of the ranks if that is more, as each is looked at."""
LEARN_S: Final = 1.0
"""Or those of so many seconds."""


class RoutingCore:
    """One router's knowledge and decisions.

    Args:
        config: names the policy, and gives the reservations' timeout and the initial prefill rate.
        dp_size: ranks that there may be, 0 to dp_size - 1; more can be there for a while.
        index: one that several cores share; by default a new one.
        membership: the same.
        rng: where policies that leave something to chance draw from; by default a new one, seeded by the
            system.

    Attributes:
        index: what each rank holds; written from the ranks' events.
        load: how busy each rank is; written from the ranks' reports.
        reservations: what was sent to ranks and not reported by them yet.
        membership: the ranks that can take requests, and those that can't for now.

    Raises:
        ConfigError: there is no such policy.
    """

    def __init__(
        self,
        config: RoutingConfig,
        dp_size: int,
        *,
        index: PrefixIndex | None = None,
        membership: Membership | None = None,
        rng: Random | None = None,
    ) -> None:
        self.index = PrefixIndex() if index is None else index
        self.membership = Membership() if membership is None else membership
        self.load = LoadBook(config)
        self.reservations = Reservations(self.load, config.reservation_timeout_s)
        policy = find_policy(config.policy, field="routing.policy")
        self._prices = CachePrices(self.index, self.load, self.reservations, self.membership)
        self._sent: list[SentRequest] = []
        """Requests that the prices don't count yet."""
        self._num_learnt = max(LEARN_REQUESTS, dp_size // 8)
        self._chooser = Chooser(self.index, self.load, self._prices, policy, dp_size, rng or Random())

    def choose(
        self,
        prompt: Prompt,
        now: float,
        *,
        exclude: frozenset[int] = frozenset(),
        pinned_rank: int | None = None,
    ) -> Decision:
        """Choose a rank for `prompt` and reserve its work there; else as `consider`.

        Nothing is reserved when a later choice for the request is known: no client waits for this one.
        """
        is_wanted = self.reservations.supersede(prompt.request_id, prompt.choice_seq)
        decision = self.consider(prompt, now, exclude=exclude, pinned_rank=pinned_rank)
        if is_wanted:
            self.reservations.add(
                decision.rank, prompt.request_id, decision.uncached_tokens, now, prompt.choice_seq
            )
            self._note(prompt, decision, now)
        return decision

    def consider(
        self,
        prompt: Prompt,
        now: float,
        *,
        exclude: frozenset[int] = frozenset(),
        pinned_rank: int | None = None,
    ) -> Decision:
        """What `choose` would decide now; nothing is reserved. A policy that draws may draw otherwise then.

        Args:
            prompt: the request.
            now: monotonic seconds.
            exclude: ranks that this request has already failed on.
            pinned_rank: the only rank that the client allows.

        Raises:
            UnknownRankError: the pinned rank neither is there nor may be.
            NoRankError: no rank that is allowed is routable.
        """
        self.reservations.expire(now)
        return self._chooser.decide(prompt, self.membership.routable, exclude, pinned_rank)

    def join(self, rank: int) -> None:
        """A replica that nothing is known of has taken this number: expect its events and reports."""
        self.drop(rank)
        self.load.join(rank)

    def set_unavailable(self, rank: int, reason: str) -> None:
        """`rank` can take no requests for now: its load is forgotten, its blocks stay as its events say.

        Nothing else may write its load until `load.join`. Then it starts with the least work assigned to a
        rank that could take requests meanwhile: behind them, it would win every tie until it had caught up.
        """
        self.membership.set_unavailable(rank, reason)
        self.reservations.drop(rank)
        self.load.drop(rank)

    def drop(self, rank: int) -> None:
        """Forget everything of `rank`: that it can take requests, its blocks, reservations and load."""
        self.membership.remove(rank)
        self.index.clear(rank)
        self._prices.drop(rank)
        self.reservations.drop(rank)
        self.load.drop(rank)

    def _note(self, prompt: Prompt, decision: Decision, now: float) -> None:
        """Have the prices count a request, soon; the views, which are large, aren't kept until then."""
        views = decision.views
        sent = SentRequest(
            prompt.block_hashes,
            prompt.block_size,
            decision.rank,
            decision.uncached_tokens,
            views.tiers,
            views.rank,
            now,
        )
        self._sent.append(sent)
        if len(self._sent) >= self._num_learnt or now - self._sent[0].at >= LEARN_S:
            sent_requests, self._sent = self._sent, []
            self._prices.learn(sent_requests, now)

    def check_integrity(self) -> None:
        """Raises AssertionError when something that is kept twice differs."""
        self.index.check_integrity()
        self.load.check_integrity()
        self.reservations.check_integrity()
