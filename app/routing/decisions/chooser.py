"""The decision: one synchronous step from a prompt's block hashes to a reserved rank.

Looking and reserving can't be split: between them another request would see the same idle rank and follow. On
the router's single-threaded event loop, a function without `await` is that one step, with respect to other
requests and to arriving events alike.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from random import Random

import msgspec

from app.config import PolicyName
from app.errors import InvalidRequestError, NoRankError
from app.events.following.sync_status import Trust
from app.routing.index.prefix_index import PrefixIndex
from app.routing.load.load_book import LoadBook
from app.routing.membership import RoutableRanks
from app.routing.policies.policy import POLICIES, Hints
from app.routing.rank_view import Floats, RankView, RankViews, Tier


class Prompt(msgspec.Struct, frozen=True):
    """A request as a router sees it.

    Attributes:
        request_id: names its reservation; the same id again replaces the earlier reservation.
        block_hashes: wire hashes of the prompt's full blocks, from its start.
        num_tokens: the prompt's length, at least 1.
        block_size: tokens per block.
        session_id: the session that the client named, if it did.
        choice_seq: orders the times that routers are asked for this request: the last has the highest.
    """

    request_id: str
    block_hashes: Sequence[int]
    num_tokens: int
    block_size: int
    session_id: str | None = None
    choice_seq: int = 0

    @property
    def num_reusable_blocks(self) -> int:
        """Blocks that may come from a cache: the last token is always computed, for its logits."""
        return min(len(self.block_hashes), (self.num_tokens - 1) // self.block_size)


@dataclass(frozen=True)
class Receipt:
    """One rank as it was considered, and its cost in the policy's own unit."""

    view: RankView
    cost: float


class Decision(msgspec.Struct, frozen=True, eq=False):
    """Where a request goes, and why. Made for every request, so it only refers to what was looked at.

    Attributes:
        rank: the chosen rank.
        cached_tokens: prompt tokens that it is believed to hold.
        uncached_tokens: the rest, at least 1.
        predicted_ttft_s: seconds until it will have computed the prompt.
        policy: the name of the policy that chose, or "pinned" when the client named the rank.
        trust: in what is known of the chosen rank's cache.
        num_blocks: full blocks of the prompt.
        views: every rank that was alive, by rank.
        candidates: those of them that could have been chosen.
        costs: the candidates' costs in the policy's own unit.
        exclude: ranks that the request had failed on already.
        pinned_rank: the only rank that the client allowed.
        deferred_by: the configured policy, if it left the choice to `policy`.
    """

    rank: int
    cached_tokens: int
    uncached_tokens: int
    predicted_ttft_s: float
    policy: str
    trust: Trust
    num_blocks: int
    views: RankViews
    candidates: RankViews
    costs: Floats
    exclude: frozenset[int] = frozenset()
    pinned_rank: int | None = None
    deferred_by: PolicyName | None = None

    @property
    def considered(self) -> tuple[Receipt, ...]:
        """A receipt for every rank that could have been chosen, by rank."""
        return tuple(map(Receipt, self.candidates, self.costs.tolist()))

    @property
    def missed_tokens(self) -> int:
        """Prompt tokens that some rank that could have been chosen holds beyond those of the chosen one."""
        tiers = self.candidates.tiers
        return tiers[0][1] - self.cached_tokens if tiers else 0


class Chooser:
    """Chooses ranks with one policy.

    Args:
        index: what each rank holds.
        load: how busy each rank is; reservations go there.
        policy: the policy's config name.
        dp_size: ranks of the deployment, alive or not: 0 to dp_size - 1.
        rng: where policies that leave something to chance draw from; a new one, seeded by the system, if
            none is given.
    """

    def __init__(
        self,
        index: PrefixIndex,
        load: LoadBook,
        policy: PolicyName,
        dp_size: int,
        rng: Random | None = None,
    ) -> None:
        self._index = index
        self._load = load
        self._policy_name = policy
        self._policy = POLICIES[policy]
        self._dp_size = dp_size
        self._rng = rng or Random()

    def choose(
        self,
        prompt: Prompt,
        alive: RoutableRanks,
        now: float,
        *,
        exclude: frozenset[int] = frozenset(),
        pinned_rank: int | None = None,
    ) -> Decision:
        """Choose a rank for `prompt` and reserve its work there; else as `consider`.

        Nothing is reserved when a later ask is known to have been answered: nobody waits for this one.
        """
        is_wanted = self._load.supersede(prompt.request_id, prompt.choice_seq)
        decision = self.consider(prompt, alive, now, exclude=exclude, pinned_rank=pinned_rank)
        if is_wanted:
            self._load.reserve(
                decision.rank, prompt.request_id, decision.uncached_tokens, now, choice_seq=prompt.choice_seq
            )
        return decision

    def consider(
        self,
        prompt: Prompt,
        alive: RoutableRanks,
        now: float,
        *,
        exclude: frozenset[int] = frozenset(),
        pinned_rank: int | None = None,
    ) -> Decision:
        """What `choose` would decide now; nothing is reserved. A policy that draws may draw otherwise then.

        Args:
            prompt: the request.
            alive: the ranks that can take requests, each with the trust in what is known of its cache. One
                that isn't exact is routed by load alone: credited nothing, never left out.
            now: monotonic seconds.
            exclude: ranks that this request has already failed on.
            pinned_rank: the only rank that the client allows.

        Raises:
            InvalidRequestError: the pinned rank can't exist in this deployment.
            NoRankError: no rank that is allowed is alive.
        """
        self._load.expire(now)
        views = self._views(prompt, alive)
        candidates = views
        if exclude or pinned_rank is not None:
            candidates = views.of_ranks(self._allowed(alive, exclude, pinned_rank))
        elif not alive:
            raise NoRankError(_no_rank_message(alive, exclude))
        hints = Hints(prompt.session_id, self._rng.random())
        choice = self._policy(candidates, prompt.num_tokens, self._load.mean_uncached_tokens, hints)
        deferred_to = choice.deferred_to if pinned_rank is None else None
        return Decision(
            rank=choice.rank,
            cached_tokens=choice.cached_tokens,
            uncached_tokens=prompt.num_tokens - choice.cached_tokens,
            predicted_ttft_s=choice.predicted_ttft_s,
            policy=(deferred_to or self._policy_name) if pinned_rank is None else "pinned",
            trust=alive[choice.rank],
            num_blocks=len(prompt.block_hashes),
            views=views,
            candidates=candidates,
            costs=choice.costs,
            exclude=exclude,
            pinned_rank=pinned_rank,
            deferred_by=self._policy_name if deferred_to is not None else None,
        )

    def release(self, request_id: str) -> None:
        """End the request's reservation, if it still has one."""
        self._load.release(request_id)

    def _allowed(self, alive: RoutableRanks, exclude: frozenset[int], pinned_rank: int | None) -> Set[int]:
        if pinned_rank is None:
            allowed = alive.keys() - exclude
            if not allowed:
                raise NoRankError(_no_rank_message(alive, exclude))
            return allowed
        if not 0 <= pinned_rank < self._dp_size:
            raise InvalidRequestError(
                f"routed_dp_rank = {pinned_rank!r}: allowed are 0 to {self._dp_size - 1}",
                param="routed_dp_rank",
            )
        if pinned_rank not in alive or pinned_rank in exclude:
            raise NoRankError(
                f"rank {pinned_rank}, which the client named, can't take requests now; alive: {list(alive)}"
            )
        return {pinned_rank}

    def _views(self, prompt: Prompt, alive: RoutableRanks) -> RankViews:
        counts, prefill_rate = self._load.columns(alive)
        return RankViews(alive.ranks, self._tiers(prompt, alive), counts, prefill_rate, alive.trusts)

    def _tiers(self, prompt: Prompt, alive: RoutableRanks) -> list[Tier]:
        """What the ranks are known to hold of the prompt's reusable blocks."""
        tiers: list[Tier] = []
        for depth, holders in self._index.match(prompt.block_hashes[: prompt.num_reusable_blocks]):
            known = holders & alive.exact
            if known:
                tiers.append((alive.positions(known), depth * prompt.block_size))
        return tiers


def _no_rank_message(alive: RoutableRanks, exclude: frozenset[int]) -> str:
    if not alive:
        return "no rank is alive"
    return f"every rank that is alive ({list(alive)}) has already failed this request ({sorted(exclude)})"
