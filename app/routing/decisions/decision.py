"""What is decided on, and what the decision is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import msgspec

from app.events.following.sync_status import Trust
from app.routing.policies.base import CandidateCost
from app.routing.rank_view import Floats, RankViews


class Prompt(msgspec.Struct, frozen=True):
    """A request as a router sees it.

    Attributes:
        request_id: names its reservation; the same id again replaces the earlier reservation.
        block_hashes: wire hashes of the prompt's full blocks, from its start.
        num_tokens: the prompt's length, at least 1.
        block_size: tokens per block.
        session_id: the session that the client named, if it did.
        choice_seq: orders the choices, of all routers, for this request: the last has the highest.
        num_output_tokens: how many of the tokens are output that other ranks have produced.
    """

    request_id: str
    block_hashes: Sequence[int]
    num_tokens: int
    block_size: int
    session_id: str | None = None
    choice_seq: int = 0
    num_output_tokens: int = 0

    @property
    def num_reusable_blocks(self) -> int:
        """Blocks that may come from a cache: the last token is always computed, for its logits."""
        return min(len(self.block_hashes), (self.num_tokens - 1) // self.block_size)


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
        views: every routable rank, by rank.
        candidates: those of them that could have been chosen.
        costs: the candidates' costs in the policy's own unit.
        unavailable: ranks that were there but could take no requests, and why not.
        exclude: ranks that the request had failed on already.
        pinned_rank: the only rank that the client allowed.
        deferred_by: the configured policy, if it left the choice to `policy`.
        choice_seq, num_output_tokens: the prompt's.
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
    unavailable: Mapping[int, str]
    exclude: frozenset[int] = frozenset()
    pinned_rank: int | None = None
    deferred_by: str | None = None
    choice_seq: int = 0
    num_output_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """The prompt's length."""
        return self.cached_tokens + self.uncached_tokens

    @property
    def considered(self) -> tuple[CandidateCost, ...]:
        """Every rank that could have been chosen, by rank, with its cost."""
        return tuple(map(CandidateCost, self.candidates, self.costs.tolist()))

    @property
    def regret_tokens(self) -> int:
        """Prompt tokens that some rank that could have been chosen holds beyond those of the chosen one.

        What is known to be held counts: a partial cache may hold more.
        """
        tiers = self.candidates.tiers
        return tiers[0][1] - self.cached_tokens if tiers else 0


def obstacle(rank: int, unavailable: Mapping[int, str], exclude: Set[int]) -> str:
    """Why `rank`, which isn't routable or is in `exclude`, couldn't be chosen."""
    if rank in exclude:
        return "the request has failed there already"
    return f"unavailable: {unavailable[rank]}" if rank in unavailable else "not alive"
