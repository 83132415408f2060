"""A choice as a whole: real index, real load book, real policies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from app.errors import InvalidRequestError, NoRankError
from app.events.following.sync_status import Trust
from app.routing.core import RoutingCore
from app.routing.decisions.decision import Decision, Prompt
from app.routing.policies.registry import POLICIES
from tests.support.routing.cores import assigned, load_stat, new_core, new_prompt, set_routable

BLOCK_SIZE = 4
ALL_EXACT: Mapping[int, Trust] = dict.fromkeys(range(4), "exact")


def prompt(request_id: str, tokens: list[int]) -> Prompt:
    return new_prompt(request_id, tokens, BLOCK_SIZE)


@pytest.fixture
def core() -> RoutingCore:
    return new_core()


def test_goes_where_the_prefix_is_and_says_why(core: RoutingCore) -> None:
    request = prompt("a", list(range(20)))
    core.index.store(2, request.block_hashes[:3])
    decision = core.choose(request, now=0.0)
    assert (decision.rank, decision.cached_tokens, decision.uncached_tokens) == (2, 12, 8)
    assert decision.predicted_ttft_s == pytest.approx(8 / 1000)
    assert decision.policy == "predicted_ttft"
    assert [each.view.rank for each in decision.considered] == [0, 1, 2, 3]
    assert [each.view.cached_tokens for each in decision.considered] == [0, 0, 12, 0]
    assert [each.cost for each in decision.considered] == pytest.approx([0.02, 0.02, 0.008, 0.02])
    assert core.load.waiting_tokens(2) == 8


def test_leaves_the_prefix_when_its_queue_costs_more_than_computing_again(core: RoutingCore) -> None:
    request = prompt("a", list(range(20)))
    core.index.store(2, request.block_hashes[:3])
    core.load.report(2, load_stat(running=1, waiting=1, waiting_tokens=500))
    assert core.choose(request, now=0.0).rank == 0


@pytest.mark.parametrize(("num_tokens", "usable"), [(8, 4), (9, 8), (11, 8), (4, 0), (1, 0)])
def test_at_least_one_token_is_always_computed(core: RoutingCore, num_tokens: int, usable: int) -> None:
    request = prompt("a", list(range(num_tokens)))
    core.index.store(1, request.block_hashes)
    set_routable(core, {1: "exact"})
    decision = core.choose(request, now=0.0)
    assert (decision.cached_tokens, decision.uncached_tokens) == (usable, num_tokens - usable)


def test_a_partial_rank_is_credited_what_is_known_of_it(core: RoutingCore) -> None:
    request = prompt("a", list(range(20)))
    core.index.store(1, request.block_hashes[:2])
    set_routable(core, {0: "exact", 1: "partial"})
    decision = core.choose(request, now=0.0)
    assert (decision.rank, decision.cached_tokens, decision.trust) == (1, 8, "partial")


@pytest.mark.parametrize("trust", ["syncing", "stale"])
def test_an_untrusted_rank_is_credited_nothing_but_still_chosen_by_load(
    core: RoutingCore, trust: Trust
) -> None:
    request = prompt("a", list(range(20)))
    core.index.store(1, request.block_hashes)
    core.load.report(0, load_stat(running=1, waiting=1, waiting_tokens=100))
    set_routable(core, {0: "exact", 1: trust})
    decision = core.choose(request, now=0.0)
    assert (decision.rank, decision.cached_tokens) == (1, 0)


EVERY_POLICY = pytest.mark.parametrize("policy", POLICIES)


@EVERY_POLICY
def test_no_policy_credits_a_stale_rank_or_leaves_it_out(policy: str) -> None:
    core = new_core(policy)
    held = prompt("held", list(range(20)))
    core.index.store(1, held.block_hashes)
    set_routable(core, {0: "exact", 1: "stale", 2: "syncing"})
    for i in range(30):
        request = replace(held, request_id=f"r{i}", session_id=f"user-{i}")
        decision = core.choose(request, now=0.0)
        assert [each.view.cached_tokens for each in decision.considered] == [0, 0, 0]
        assert decision.cached_tokens == 0
    assert all(core.load.num_requests(rank) > 0 for rank in core.membership.routable)


@EVERY_POLICY
def test_every_policy_keeps_to_what_the_request_allows(policy: str) -> None:
    core = new_core(policy)
    held = prompt("held", list(range(20)))
    core.index.store(2, held.block_hashes)
    for i in range(30):
        request = replace(held, request_id=f"r{i}", session_id=f"user-{i}")
        excluding = core.choose(request, now=0.0, exclude=frozenset({2, 0}))
        assert excluding.rank in (1, 3)
        pinned = core.choose(request, now=0.0, pinned_rank=i % 4)
        assert (pinned.rank, pinned.policy) == (i % 4, "pinned")
        set_routable(core, {3: "stale"})
        assert core.choose(request, now=0.0).rank == 3
        set_routable(core, ALL_EXACT)


def test_excluded_ranks_are_not_chosen(core: RoutingCore) -> None:
    request = prompt("a", list(range(20)))
    core.index.store(2, request.block_hashes)
    assert core.choose(request, now=0.0, exclude=frozenset({2, 0})).rank == 1


def test_nothing_left_to_choose_is_an_error_that_names_the_ranks(core: RoutingCore) -> None:
    request = prompt("a", [1])
    set_routable(core, {})
    with pytest.raises(NoRankError, match="no rank is alive"):
        core.choose(request, now=0.0)
    set_routable(core, {1: "exact"})
    with pytest.raises(NoRankError, match=r"\[1\].*already failed"):
        core.choose(request, now=0.0, exclude=frozenset({1}))
    assert len(core.reservations) == 0


def test_a_pinned_rank_beats_every_policy(core: RoutingCore) -> None:
    request = prompt("a", list(range(20)))
    core.index.store(2, request.block_hashes)
    decision = core.choose(request, now=0.0, pinned_rank=3)
    assert (decision.rank, decision.policy, decision.cached_tokens) == (3, "pinned", 0)
    assert core.load.waiting_tokens(3) == 20


@pytest.mark.parametrize("pinned_rank", [-1, 4, 99])
def test_a_pinned_rank_that_cannot_exist_is_the_clients_error(core: RoutingCore, pinned_rank: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"{pinned_rank}.*0 to 3") as caught:
        core.choose(prompt("a", [1]), now=0.0, pinned_rank=pinned_rank)
    assert caught.value.param == "routed_dp_rank"


def test_a_pinned_rank_that_is_down_is_not_replaced_by_another(core: RoutingCore) -> None:
    set_routable(core, {0: "exact"})
    with pytest.raises(NoRankError, match="rank 1, which the client named,"):
        core.choose(prompt("a", [1]), now=0.0, pinned_rank=1)
    set_routable(core, ALL_EXACT)
    with pytest.raises(NoRankError, match="rank 1, which the client named,"):
        core.choose(prompt("a", [1]), now=0.0, pinned_rank=1, exclude=frozenset({1}))


def test_unavailable_ranks_get_nothing_and_say_why(core: RoutingCore) -> None:
    request = prompt("a", list(range(20)))
    core.index.store(1, request.block_hashes)
    core.set_unavailable(1, "worker down")
    decision = core.choose(request, now=0.0)
    assert decision.rank in (0, 2, 3)
    with pytest.raises(
        NoRankError, match=r"rank 1.*named.*: unavailable: worker down; these can: \[0, 2, 3\]"
    ):
        core.choose(request, now=0.0, pinned_rank=1)
    for rank in (0, 2):
        core.set_unavailable(rank, "worker down")
    with pytest.raises(NoRankError) as caught:
        core.choose(request, now=0.0, exclude=frozenset({3}))
    assert caught.value.message == (
        "every rank that can take requests ([3]) has already failed this one ([3]); "
        "ranks [0, 1, 2] are unavailable: worker down"
    )
    core.set_unavailable(3, "another model")
    with pytest.raises(NoRankError) as caught:
        core.choose(request, now=0.0)
    assert caught.value.message == (
        "no rank can take requests now: "
        "ranks [0, 1, 2] are unavailable: worker down; ranks [3] are unavailable: another model"
    )
    assert len(core.reservations) == 0
    core.check_integrity()


def test_a_client_reads_a_few_of_many_reasons(core: RoutingCore) -> None:
    set_routable(core, {})
    for rank in range(100):
        core.set_unavailable(rank, f"worker {rank} down")
    with pytest.raises(NoRankError, match=r"worker 3 down; and 96 other reasons$") as caught:
        core.choose(prompt("a", [1]), now=0.0)
    assert len(caught.value.message) < 300


@EVERY_POLICY
def test_a_rank_that_was_unavailable_for_long_does_not_get_everything_afterwards(policy: str) -> None:
    core = new_core(policy)
    core.set_unavailable(2, "worker down")
    core.set_unavailable(3, "worker down")

    def send(first: int, count: int) -> None:
        for i in range(first, first + count):
            core.choose(new_prompt(f"r{i}", [i, *range(9)], BLOCK_SIZE, f"user-{i}"), now=0.0)
            core.reservations.release(f"r{i}")

    send(0, 200)
    core.load.join(2)
    core.membership.set(2, "exact")
    before = assigned(core, 2)[1]
    send(1000, 30)
    assert assigned(core, 2)[1] - before < 25
    core.check_integrity()


def test_a_retry_moves_its_reservation(core: RoutingCore) -> None:
    request = prompt("a", list(range(20)))
    first = core.choose(request, now=0.0)
    second = core.choose(request, now=0.1, exclude=frozenset({first.rank}))
    assert core.load.waiting_tokens(first.rank) == 0
    assert core.load.waiting_tokens(second.rank) == 20
    core.reservations.release("a")
    assert len(core.reservations) == 0


def test_a_choice_that_was_overtaken_reserves_nothing(core: RoutingCore) -> None:
    """It waited at a router that hung; meanwhile another one has answered."""
    first = prompt("a", list(range(20)))
    core.reservations.add_from_peer(1, "a", 20, now=0.0, choice_seq=1)
    set_routable(core, {0: "exact"})
    core.choose(first, now=0.0)
    assert (core.load.waiting_tokens(0), core.load.waiting_tokens(1)) == (0, 20)
    core.choose(replace(first, choice_seq=2), now=0.0)
    assert (core.load.waiting_tokens(0), core.load.waiting_tokens(1)) == (20, 0)


def test_a_choice_sees_past_deadlines(core: RoutingCore) -> None:
    set_routable(core, {0: "exact"})
    core.choose(prompt("a", list(range(20))), now=0.0)
    later = core.choose(prompt("b", list(range(20))), now=5.0)
    assert later.considered[0].view.counts.waiting_tokens == 0


async def choose_concurrently(core: RoutingCore, requests: list[Prompt]) -> list[Decision]:
    async def one(request: Prompt) -> Decision:
        await asyncio.sleep(0)
        return core.choose(request, now=0.0)

    return await asyncio.gather(*map(one, requests))


@pytest.mark.parametrize("policy", ["predicted_ttft", "least_loaded", "round_robin", "prefix_affinity"])
async def test_concurrent_distinct_prompts_spread_evenly_over_idle_ranks(policy: str) -> None:
    requests = [prompt(f"r{i}", [i, *range(99)]) for i in range(100)]
    decisions = await choose_concurrently(new_core(policy), requests)
    assert Counter(decision.rank for decision in decisions) == dict.fromkeys(range(4), 25)


async def test_distinct_prompts_spread_when_each_is_done_before_the_next(core: RoutingCore) -> None:
    ranks: Counter[int] = Counter()
    for i in range(100):
        ranks[core.choose(prompt(f"r{i}", [i, *range(99)]), now=0.0).rank] += 1
        core.reservations.release(f"r{i}")
    assert ranks == dict.fromkeys(range(4), 25)


async def test_a_hot_prefix_spreads_before_its_holder_queues_up(core: RoutingCore) -> None:
    hot = list(range(400))
    core.index.store(0, prompt("hot", hot).block_hashes)
    requests = [prompt(f"r{i}", [*hot, i, *range(99)]) for i in range(100)]
    decisions = await choose_concurrently(core, requests)
    assert decisions[0].rank == 0
    # The holder computes 100 tokens of each, the others 500: four requests queue there, then others join in.
    assert [decision.rank for decision in decisions[:4]] == [0, 0, 0, 0]
    assert {decision.rank for decision in decisions[4:8]} >= {1, 2, 3}
    assert Counter(decision.rank for decision in decisions).most_common(1)[0][0] == 0


def test_hashes_of_only_some_blocks_credit_only_those(core: RoutingCore) -> None:
    request = prompt("a", list(range(20)))
    core.index.store(0, request.block_hashes)
    decision = core.choose(Prompt("a", request.block_hashes[:1], 20, BLOCK_SIZE), now=0.0)
    assert decision.cached_tokens == BLOCK_SIZE
