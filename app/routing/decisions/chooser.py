"""A choice: from a prompt's block hashes to a rank, with one policy. Changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from random import Random

from app.errors import NoRankAliveError, NoRankError, UnknownRankError
from app.routing.decisions.decision import Decision, Prompt, obstacle
from app.routing.index.prefix_index import PrefixIndex
from app.routing.load.load_book import LoadBook
from app.routing.membership import RoutableRanks
from app.routing.policies.base import PolicyInput, PolicySpec
from app.routing.prices.cache_prices import CachePrices
from app.routing.rank_view import RankViews, Tier

MAX_REASONS = 4
"""Shown to a client that no rank can serve."""


class Chooser:
    """Chooses ranks with one policy.

    Args:
        index: what each rank holds; only read.
        load: how busy each rank is; only read.
        prices: what was learnt of prompts; only read.
        policy: chooses.
        dp_size: ranks that there may be, 0 to dp_size - 1; more can be there for a while.
        rng: where policies that leave something to chance draw from.
    """

    def __init__(
        self,
        index: PrefixIndex,
        load: LoadBook,
        prices: CachePrices,
        policy: PolicySpec,
        dp_size: int,
        rng: Random,
    ) -> None:
        self._index = index
        self._load = load
        self._prices = prices
        self._policy = policy
        self._dp_size = dp_size
        self._rng = rng

    def decide(
        self, prompt: Prompt, routable: RoutableRanks, exclude: frozenset[int], pinned_rank: int | None
    ) -> Decision:
        """The rank for `prompt`.

        Args:
            prompt: the request.
            routable: the ranks that can take requests, each with the trust in what is known of its cache. One
                that is neither exact nor partial is routed by load alone: credited nothing, never left out.
            exclude: ranks that this request has already failed on.
            pinned_rank: the only rank that the client allows.

        Raises:
            UnknownRankError: the pinned rank neither is there nor may be.
            NoRankError: no rank that is allowed is routable; a `NoRankAliveError` if there is none at all.
        """
        reusable = prompt.block_hashes[: prompt.num_reusable_blocks]
        matches = self._index.match(reusable)
        views = self._views(matches, prompt.block_size, routable)
        candidates = views
        if exclude or pinned_rank is not None:
            candidates = views.of_ranks(self._allowed(routable, exclude, pinned_rank))
        elif not routable:
            raise _no_rank_error(routable, exclude)
        given = PolicyInput(
            prompt.num_tokens,
            self._load.mean_uncached_tokens,
            prompt.session_id,
            self._rng.random(),
            self._prices.loss_row(prompt.block_hashes),
            self._prices.copyable_blocks(reusable, matches) * prompt.block_size,
        )
        name = self._policy.name
        choice = self._policy.choose(candidates, given)
        deferred_to = choice.deferred_to if pinned_rank is None else None
        return Decision(
            rank=choice.rank,
            cached_tokens=choice.cached_tokens,
            uncached_tokens=prompt.num_tokens - choice.cached_tokens,
            predicted_ttft_s=choice.predicted_ttft_s,
            policy=(deferred_to or name) if pinned_rank is None else "pinned",
            trust=routable[choice.rank],
            num_blocks=len(prompt.block_hashes),
            views=views,
            candidates=candidates,
            costs=choice.costs,
            unavailable=routable.unavailable,
            exclude=exclude,
            pinned_rank=pinned_rank,
            deferred_by=name if deferred_to is not None else None,
            choice_seq=prompt.choice_seq,
            num_output_tokens=prompt.num_output_tokens,
        )

    def _allowed(self, routable: RoutableRanks, exclude: frozenset[int], pinned_rank: int | None) -> Set[int]:
        if pinned_rank is None:
            allowed = routable.keys() - exclude
            if not allowed:
                raise _no_rank_error(routable, exclude)
            return allowed
        dp_size = max(self._dp_size, 1 + max((*routable, *routable.unavailable), default=-1))
        if not 0 <= pinned_rank < dp_size:
            raise UnknownRankError.of(pinned_rank, dp_size)
        if pinned_rank not in routable or pinned_rank in exclude:
            raise _kind_of_error(routable)(
                f"rank {pinned_rank}, which the client named, can't take requests now: "
                f"{obstacle(pinned_rank, routable.unavailable, exclude)}; these can: {list(routable)}"
            )
        return {pinned_rank}

    def _views(
        self, matches: Sequence[tuple[int, int]], block_size: int, routable: RoutableRanks
    ) -> RankViews:
        """The ranks, with what they are known to hold of the prompt's reusable blocks."""
        counts, prefill_rate = self._load.columns(routable)
        tiers: list[Tier] = []
        for depth, holders in matches:
            known = holders & routable.credited
            if known:
                tiers.append((routable.positions(known), depth * block_size))
        prices = self._prices.columns(routable)
        return RankViews(routable.ranks, tiers, counts, prefill_rate, routable.trusts, prices)


def _kind_of_error(routable: RoutableRanks) -> type[NoRankError]:
    return NoRankError if routable or routable.unavailable else NoRankAliveError


def _no_rank_error(routable: RoutableRanks, exclude: frozenset[int]) -> NoRankError:
    reasons = _by_reason(routable.unavailable)
    message = "no rank is alive"
    if routable:
        failed = f"every rank that can take requests ({list(routable)}) has already failed this one"
        message = "; ".join([f"{failed} ({sorted(exclude)})", *reasons])
    elif reasons:
        message = f"no rank can take requests now: {'; '.join(reasons)}"
    return _kind_of_error(routable)(message)


def _by_reason(unavailable: Mapping[int, str]) -> list[str]:
    """A sentence for each of up to `MAX_REASONS` reasons: the ranks of one worker mostly share theirs."""
    ranks_by_reason = defaultdict[str, list[int]](list)
    for rank, reason in unavailable.items():
        ranks_by_reason[reason].append(rank)
    sentences = [f"ranks {ranks} are unavailable: {reason}" for reason, ranks in ranks_by_reason.items()]
    more = len(sentences) - MAX_REASONS
    return sentences if more <= 0 else [*sentences[:MAX_REASONS], f"and {more} other reasons"]
