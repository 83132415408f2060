"""What a receipt says of the policy that chose: with real decisions."""

from __future__ import annotations

from random import Random
from typing import get_args

import pytest

from app.config import PolicyName, RoutingConfig
from app.events.schema import LoadStat
from app.routing.decisions.chooser import Chooser, Decision, Prompt
from app.routing.decisions.explanation import explanation
from app.routing.decisions.reasons import reasons
from app.routing.index.prefix_index import PrefixIndex
from app.routing.load.load_book import LoadBook
from app.routing.membership import RoutableRanks

BLOCK_SIZE = 4
HASHES = list(range(100, 105))
DP_SIZE = 4
ALIVE = RoutableRanks(dict.fromkeys(range(DP_SIZE), "exact"))


class Router:
    """A chooser of four ranks."""

    def __init__(self, policy: PolicyName, seed: int = 5) -> None:
        self.index = PrefixIndex()
        self.load = LoadBook(RoutingConfig(reservation_timeout_s=5.0, initial_prefill_tokens_per_s=1000.0))
        self.chooser = Chooser(self.index, self.load, policy, DP_SIZE, Random(seed))

    def consider(
        self, session_id: str | None = None, alive: RoutableRanks = ALIVE, pinned: int | None = None
    ) -> Decision:
        prompt = Prompt("a", HASHES, 20, BLOCK_SIZE, session_id)
        return self.chooser.consider(prompt, alive, now=0.0, pinned_rank=pinned)

    def hold_requests(self, rank: int, count: int, waiting_tokens: int = 0) -> None:
        self.load.report(rank, LoadStat(count, 0, 0, 1000, rank, waiting_tokens, 0, 64, 0, 0))


def why(decision: Decision) -> str:
    return reasons(decision, DP_SIZE)


def test_the_lowest_cost_and_ties_are_called_so_with_what_the_cost_is() -> None:
    router = Router("least_loaded")
    assert why(router.consider()) == (
        "ranks [0, 1, 2, 3] have the lowest cost of least_loaded (requests running, waiting or on their "
        "way), 0, and its tie-break took rank 0; it holds 0 of the prompt's 20 tokens"
    )
    for rank, count in enumerate((5, 3, 2, 4)):
        router.hold_requests(rank, count)
    assert why(router.consider()).startswith(
        "rank 2 has the lowest cost of least_loaded (requests running, waiting or on their way), 2; "
        "next is rank 1 with 3; "
    )


def test_predictions_that_are_nearly_the_same_are_called_ties() -> None:
    router = Router("predicted_ttft")
    for rank, waiting_tokens in enumerate((1001, 1000, 2000, 2000)):
        router.hold_requests(rank, rank, waiting_tokens)
    decision = router.consider()
    assert decision.rank == 0
    assert why(decision).startswith(
        "ranks [0, 1] have the lowest cost of predicted_ttft (seconds to the first"
    )


def test_a_policy_that_is_blind_to_caches_is_called_so() -> None:
    router = Router("least_loaded")
    router.index.store(3, HASHES)
    assert why(router.consider()).endswith(
        "it holds 0 of the prompt's 20 tokens, rank 3 holds 16, which least_loaded doesn't look at"
    )


def test_prefix_affinity_gives_a_prefix_up_for_overload_alone() -> None:
    router = Router("prefix_affinity")
    router.index.store(1, HASHES)
    router.hold_requests(1, 32)
    assert why(router.consider()).startswith(
        "rank 1 has the lowest cost of prefix_affinity (tokens to compute"
    )
    router.hold_requests(1, 40)
    assert why(router.consider()).endswith("rank 1 holds 16 but has 40 requests")


def test_a_session_has_its_own_rank_and_an_order_of_the_others() -> None:
    router = Router("session")
    own = router.consider("s")
    assert (own.policy, own.deferred_by) == ("session", None)
    assert why(own).startswith(f"rank {own.rank} is the session's own; it holds")
    others = RoutableRanks({rank: ALIVE[rank] for rank in ALIVE if rank != own.rank})
    second = router.consider("s", others)
    assert why(second).startswith(f"rank {second.rank} is the first in the session's order of {[*others]}; ")
    router.hold_requests(own.rank, 33)
    assert router.consider("s").rank == second.rank
    assert why(router.consider("s")).startswith(
        f"rank {second.rank} is the next in the session's order after [{own.rank}], which are overloaded; "
    )


def test_without_a_session_the_policy_says_who_chose_instead() -> None:
    decision = Router("session").consider()
    receipt = explanation(decision, DP_SIZE)
    assert (receipt["policy"], receipt["deferred_by"]) == ("predicted_ttft", "session")
    assert receipt["why"].startswith(
        "session left the choice to predicted_ttft: the request names no x-session-id; ranks [0, 1, 2, 3] "
    )


def test_what_was_drawn_is_called_so_since_a_request_may_draw_otherwise() -> None:
    router = Router("random")
    decisions = [router.consider() for _ in range(20)]
    assert len({decision.rank for decision in decisions}) > 1
    for decision in decisions:
        assert why(decision).startswith(
            f"random drew rank {decision.rank} of [0, 1, 2, 3]; every request draws anew; it holds"
        )


def test_both_ranks_that_were_drawn_are_named() -> None:
    router = Router("power_of_two")
    for rank in ALIVE:
        router.hold_requests(rank, 3 - rank)
    decision = router.consider()
    drawn = sorted(each.view.rank for each in decision.considered if each.cost < 2)
    assert drawn[1] == decision.rank
    assert why(decision).startswith(
        f"power_of_two drew ranks {drawn}, of which {decision.rank} is the less loaded; every request draws "
    )


@pytest.mark.parametrize("policy", get_args(PolicyName))
def test_no_policy_hides_that_there_was_no_choice(policy: PolicyName) -> None:
    router = Router(policy)
    pinned = router.consider(pinned=2)
    assert (pinned.policy, pinned.deferred_by, why(pinned)) == ("pinned", None, "the client named rank 2")
    assert (
        why(router.consider("s", RoutableRanks({3: "stale"})))
        == "rank 3 is the only one that could be chosen"
    )


@pytest.mark.parametrize("policy", get_args(PolicyName))
@pytest.mark.parametrize("session_id", [None, "s"])
def test_a_dry_run_leaves_nothing_behind(policy: PolicyName, session_id: str | None) -> None:
    router = Router(policy)
    for _ in range(3):
        receipt = explanation(router.consider(session_id), DP_SIZE)
        assert receipt["ranks"][receipt["winner"]]["eligible"]
    assert router.load.num_reservations == 0
    assert [router.load.assigned(rank) for rank in ALIVE] == [(0, 0)] * DP_SIZE
