"""What a receipt says of the policy that chose: with real decisions."""

from __future__ import annotations

import pytest

from app.routing.core import RoutingCore
from app.routing.decisions.decision import Decision, Prompt
from app.routing.decisions.explanation import explanation
from app.routing.decisions.reasons import reasons
from app.routing.policies.registry import POLICIES
from tests.support.routing.cores import assigned, load_stat, new_core, set_routable

HASHES = list(range(100, 105))
DP_SIZE = 4


def consider(core: RoutingCore, session_id: str | None = None, pinned: int | None = None) -> Decision:
    return core.consider(Prompt("a", HASHES, 20, 4, session_id), now=0.0, pinned_rank=pinned)


def hold_requests(core: RoutingCore, rank: int, count: int, waiting_tokens: int = 0) -> None:
    core.load.report(rank, load_stat(rank=rank, running=count, waiting_tokens=waiting_tokens))


def why(decision: Decision) -> str:
    return reasons(decision, DP_SIZE)


def test_the_lowest_cost_and_ties_are_called_so_with_what_the_cost_is() -> None:
    core = new_core("least_loaded")
    assert why(consider(core)) == (
        "ranks [0, 1, 2, 3] have the lowest cost of least_loaded (requests running, waiting or on their "
        "way), 0, and its tie-break took rank 0; it holds 0 of the prompt's 20 tokens"
    )
    for rank, count in enumerate((5, 3, 2, 4)):
        hold_requests(core, rank, count)
    assert why(consider(core)).startswith(
        "rank 2 has the lowest cost of least_loaded (requests running, waiting or on their way), 2; "
        "next is rank 1 with 3; "
    )


def test_predictions_that_are_nearly_the_same_are_called_ties() -> None:
    core = new_core("predicted_ttft")
    for rank, waiting_tokens in enumerate((1001, 1000, 2000, 2000)):
        hold_requests(core, rank, rank, waiting_tokens)
    decision = consider(core)
    assert decision.rank == 0
    assert why(decision).startswith(
        "ranks [0, 1] have the lowest cost of predicted_ttft (seconds to the first"
    )


def test_a_policy_that_is_blind_to_caches_is_called_so() -> None:
    core = new_core("least_loaded")
    core.index.store(3, HASHES)
    assert why(consider(core)).endswith(
        "it holds 0 of the prompt's 20 tokens, rank 3 holds 16, which least_loaded doesn't look at"
    )


def test_prefix_affinity_gives_a_prefix_up_for_overload_alone() -> None:
    core = new_core("prefix_affinity")
    core.index.store(1, HASHES)
    hold_requests(core, 1, 32)
    assert why(consider(core)).startswith("rank 1 has the lowest cost of prefix_affinity (tokens to compute")
    hold_requests(core, 1, 40)
    assert why(consider(core)).endswith("rank 1 holds 16 but has 40 requests")


def test_a_session_has_its_own_rank_and_an_order_of_the_others() -> None:
    core = new_core("session")
    own = consider(core, "s")
    assert (own.policy, own.deferred_by) == ("session", None)
    assert why(own).startswith(f"rank {own.rank} is the session's own; it holds")
    others = [rank for rank in range(DP_SIZE) if rank != own.rank]
    core.membership.remove(own.rank)
    second = consider(core, "s")
    assert why(second).startswith(f"rank {second.rank} is the first in the session's order of {others}; ")
    core.membership.set(own.rank, "exact")
    hold_requests(core, own.rank, 33)
    assert consider(core, "s").rank == second.rank
    assert why(consider(core, "s")).startswith(
        f"rank {second.rank} is the next in the session's order after [{own.rank}], which are overloaded; "
    )


def test_without_a_session_the_policy_says_who_chose_instead() -> None:
    decision = consider(new_core("session"))
    receipt = explanation(decision, DP_SIZE)
    assert (receipt["policy"], receipt["deferred_by"]) == ("predicted_ttft", "session")
    assert receipt["why"].startswith(
        "session left the choice to predicted_ttft: the request names no x-session-id; ranks [0, 1, 2, 3] "
    )


def test_what_was_drawn_is_called_so_since_a_request_may_draw_otherwise() -> None:
    core = new_core("random")
    decisions = [consider(core) for _ in range(20)]
    assert len({decision.rank for decision in decisions}) > 1
    for decision in decisions:
        assert why(decision).startswith(
            f"random drew rank {decision.rank} of [0, 1, 2, 3]; every request draws again; it holds"
        )


def test_both_ranks_that_were_drawn_are_named() -> None:
    core = new_core("power_of_two")
    for rank in range(DP_SIZE):
        hold_requests(core, rank, 3 - rank)
    decision = consider(core)
    drawn = sorted(each.view.rank for each in decision.considered if each.cost < 2)
    assert drawn[1] == decision.rank
    assert why(decision).startswith(
        f"power_of_two drew ranks {drawn}, of which {decision.rank} is the less loaded; every request draws "
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_hides_that_there_was_no_choice(policy: str) -> None:
    core = new_core(policy)
    pinned = consider(core, pinned=2)
    assert (pinned.policy, pinned.deferred_by, why(pinned)) == ("pinned", None, "the client named rank 2")
    set_routable(core, {3: "stale"})
    assert why(consider(core, "s")) == "rank 3 is the only one that could be chosen"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("session_id", [None, "s"])
def test_a_dry_run_leaves_nothing_behind(policy: str, session_id: str | None) -> None:
    core = new_core(policy)
    for _ in range(3):
        receipt = explanation(consider(core, session_id), DP_SIZE)
        assert receipt["ranks"][receipt["winner"]]["eligible"]
    assert len(core.reservations) == 0
    assert [assigned(core, rank) for rank in range(DP_SIZE)] == [(0, 0)] * DP_SIZE
