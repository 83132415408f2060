"""The decision as a whole: real index, real load book, real policies."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import get_args

import pytest
from msgspec.structs import replace

from app.config import PolicyName, RoutingConfig
from app.errors import InvalidRequestError, NoRankError
from app.events.following.sync_status import Trust
from app.events.schema import LoadStat
from app.hashing import chain, wire_hash
from app.routing.decisions.chooser import Chooser, Decision, Prompt
from app.routing.index.prefix_index import PrefixIndex
from app.routing.load.load_book import LoadBook
from app.routing.membership import RoutableRanks

BLOCK_SIZE = 4
ALL_EXACT = RoutableRanks(dict.fromkeys(range(4), "exact"))


def prompt(request_id: str, tokens: list[int]) -> Prompt:
    hashes = [wire_hash(digest) for digest in chain(tokens, BLOCK_SIZE)]
    return Prompt(request_id, hashes, len(tokens), BLOCK_SIZE)


class Router:
    """A chooser with its own index and book."""

    def __init__(self, policy: PolicyName = "predicted_ttft", dp_size: int = 4) -> None:
        self.index = PrefixIndex()
        self.load = LoadBook(RoutingConfig(reservation_timeout_s=5.0, initial_prefill_tokens_per_s=1000.0))
        self.chooser = Chooser(self.index, self.load, policy, dp_size, Random(5))


@pytest.fixture
def router() -> Router:
    return Router()


def busy(waiting_tokens: int) -> LoadStat:
    return LoadStat(1, 1, 0, 1000, 0, waiting_tokens, 0, 8, 0, 0)


def test_goes_where_the_prefix_is_and_says_why(router: Router) -> None:
    request = prompt("a", list(range(20)))
    router.index.store(2, request.block_hashes[:3])
    decision = router.chooser.choose(request, ALL_EXACT, now=0.0)
    assert (decision.rank, decision.cached_tokens, decision.uncached_tokens) == (2, 12, 8)
    assert decision.predicted_ttft_s == pytest.approx(8 / 1000)
    assert decision.policy == "predicted_ttft"
    assert [receipt.view.rank for receipt in decision.considered] == [0, 1, 2, 3]
    assert [receipt.view.cached_tokens for receipt in decision.considered] == [0, 0, 12, 0]
    assert [receipt.cost for receipt in decision.considered] == pytest.approx([0.02, 0.02, 0.008, 0.02])
    assert router.load.waiting_tokens(2) == 8


def test_leaves_the_prefix_when_its_queue_costs_more_than_computing_again(router: Router) -> None:
    request = prompt("a", list(range(20)))
    router.index.store(2, request.block_hashes[:3])
    router.load.report(2, busy(waiting_tokens=500))
    assert router.chooser.choose(request, ALL_EXACT, now=0.0).rank == 0


@pytest.mark.parametrize(("num_tokens", "usable"), [(8, 4), (9, 8), (11, 8), (4, 0), (1, 0)])
def test_at_least_one_token_is_always_computed(router: Router, num_tokens: int, usable: int) -> None:
    request = prompt("a", list(range(num_tokens)))
    router.index.store(1, request.block_hashes)
    decision = router.chooser.choose(request, RoutableRanks({1: "exact"}), now=0.0)
    assert (decision.cached_tokens, decision.uncached_tokens) == (usable, num_tokens - usable)


@pytest.mark.parametrize("trust", ["syncing", "stale"])
def test_an_untrusted_rank_is_credited_nothing_but_still_chosen_by_load(router: Router, trust: Trust) -> None:
    request = prompt("a", list(range(20)))
    router.index.store(1, request.block_hashes)
    router.load.report(0, busy(waiting_tokens=100))
    decision = router.chooser.choose(request, RoutableRanks({0: "exact", 1: trust}), now=0.0)
    assert (decision.rank, decision.cached_tokens) == (1, 0)


EVERY_POLICY = pytest.mark.parametrize("policy", get_args(PolicyName))


@EVERY_POLICY
def test_no_policy_credits_a_stale_rank_or_leaves_it_out(policy: PolicyName) -> None:
    router = Router(policy)
    held = prompt("held", list(range(20)))
    router.index.store(1, held.block_hashes)
    alive = RoutableRanks({0: "exact", 1: "stale", 2: "syncing"})
    for i in range(30):
        request = replace(held, request_id=f"r{i}", session_id=f"user-{i}")
        decision = router.chooser.choose(request, alive, now=0.0)
        assert [receipt.view.cached_tokens for receipt in decision.considered] == [0, 0, 0]
        assert decision.cached_tokens == 0
    assert all(router.load.num_requests(rank) > 0 for rank in alive)


@EVERY_POLICY
def test_every_policy_keeps_to_what_the_request_allows(policy: PolicyName) -> None:
    router = Router(policy)
    held = prompt("held", list(range(20)))
    router.index.store(2, held.block_hashes)
    for i in range(30):
        request = replace(held, request_id=f"r{i}", session_id=f"user-{i}")
        excluding = router.chooser.choose(request, ALL_EXACT, now=0.0, exclude=frozenset({2, 0}))
        assert excluding.rank in (1, 3)
        pinned = router.chooser.choose(request, ALL_EXACT, now=0.0, pinned_rank=i % 4)
        assert (pinned.rank, pinned.policy) == (i % 4, "pinned")
        assert router.chooser.choose(request, RoutableRanks({3: "stale"}), now=0.0).rank == 3


def test_excluded_ranks_are_not_chosen(router: Router) -> None:
    request = prompt("a", list(range(20)))
    router.index.store(2, request.block_hashes)
    assert router.chooser.choose(request, ALL_EXACT, now=0.0, exclude=frozenset({2, 0})).rank == 1


def test_nothing_left_to_choose_is_an_error_that_names_the_ranks(router: Router) -> None:
    request = prompt("a", [1])
    with pytest.raises(NoRankError, match="no rank is alive"):
        router.chooser.choose(request, RoutableRanks({}), now=0.0)
    with pytest.raises(NoRankError, match=r"\[1\].*already failed"):
        router.chooser.choose(request, RoutableRanks({1: "exact"}), now=0.0, exclude=frozenset({1}))
    assert router.load.num_reservations == 0


def test_a_pinned_rank_beats_every_policy(router: Router) -> None:
    request = prompt("a", list(range(20)))
    router.index.store(2, request.block_hashes)
    decision = router.chooser.choose(request, ALL_EXACT, now=0.0, pinned_rank=3)
    assert (decision.rank, decision.policy, decision.cached_tokens) == (3, "pinned", 0)
    assert router.load.waiting_tokens(3) == 20


@pytest.mark.parametrize("pinned_rank", [-1, 4, 99])
def test_a_pinned_rank_that_cannot_exist_is_the_clients_error(router: Router, pinned_rank: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"{pinned_rank}.*0 to 3") as caught:
        router.chooser.choose(prompt("a", [1]), ALL_EXACT, now=0.0, pinned_rank=pinned_rank)
    assert caught.value.param == "routed_dp_rank"


def test_a_pinned_rank_that_is_down_is_not_replaced_by_another(router: Router) -> None:
    with pytest.raises(NoRankError, match="rank 1, which the client named,"):
        router.chooser.choose(prompt("a", [1]), RoutableRanks({0: "exact"}), now=0.0, pinned_rank=1)
    with pytest.raises(NoRankError, match="rank 1, which the client named,"):
        router.chooser.choose(prompt("a", [1]), ALL_EXACT, now=0.0, pinned_rank=1, exclude=frozenset({1}))


def test_a_retry_moves_its_reservation(router: Router) -> None:
    request = prompt("a", list(range(20)))
    first = router.chooser.choose(request, ALL_EXACT, now=0.0)
    second = router.chooser.choose(request, ALL_EXACT, now=0.1, exclude=frozenset({first.rank}))
    assert router.load.waiting_tokens(first.rank) == 0
    assert router.load.waiting_tokens(second.rank) == 20
    router.chooser.release("a")
    assert router.load.num_reservations == 0


def test_an_ask_that_was_overtaken_reserves_nothing(router: Router) -> None:
    """It waited at a router that hung; meanwhile another one has answered."""
    first = prompt("a", list(range(20)))
    router.load.add_peer_reservation(1, "a", 20, now=0.0, choice_seq=1)
    router.chooser.choose(first, RoutableRanks({0: "exact"}), now=0.0)
    assert (router.load.waiting_tokens(0), router.load.waiting_tokens(1)) == (0, 20)
    router.chooser.choose(replace(first, choice_seq=2), RoutableRanks({0: "exact"}), now=0.0)
    assert (router.load.waiting_tokens(0), router.load.waiting_tokens(1)) == (20, 0)


def test_a_choice_sees_past_deadlines(router: Router) -> None:
    router.chooser.choose(prompt("a", list(range(20))), RoutableRanks({0: "exact"}), now=0.0)
    later = router.chooser.choose(prompt("b", list(range(20))), RoutableRanks({0: "exact"}), now=5.0)
    assert later.considered[0].view.waiting_tokens == 0


async def choose_concurrently(router: Router, requests: list[Prompt]) -> list[Decision]:
    async def one(request: Prompt) -> Decision:
        await asyncio.sleep(0)
        return router.chooser.choose(request, ALL_EXACT, now=0.0)

    return await asyncio.gather(*map(one, requests))


@pytest.mark.parametrize("policy", ["predicted_ttft", "least_loaded", "round_robin", "prefix_affinity"])
async def test_concurrent_distinct_prompts_spread_evenly_over_idle_ranks(policy: PolicyName) -> None:
    requests = [prompt(f"r{i}", [i, *range(99)]) for i in range(100)]
    decisions = await choose_concurrently(Router(policy), requests)
    assert Counter(decision.rank for decision in decisions) == dict.fromkeys(range(4), 25)


async def test_distinct_prompts_spread_when_each_is_done_before_the_next(router: Router) -> None:
    ranks: Counter[int] = Counter()
    for i in range(100):
        ranks[router.chooser.choose(prompt(f"r{i}", [i, *range(99)]), ALL_EXACT, now=0.0).rank] += 1
        router.chooser.release(f"r{i}")
    assert ranks == dict.fromkeys(range(4), 25)


async def test_a_hot_prefix_spreads_before_its_holder_queues_up(router: Router) -> None:
    hot = list(range(400))
    router.index.store(0, prompt("hot", hot).block_hashes)
    requests = [prompt(f"r{i}", [*hot, i, *range(99)]) for i in range(100)]
    decisions = await choose_concurrently(router, requests)
    assert decisions[0].rank == 0
    # The holder computes 100 tokens of each, the others 500: four requests queue there, then others join in.
    assert [decision.rank for decision in decisions[:4]] == [0, 0, 0, 0]
    assert {decision.rank for decision in decisions[4:8]} >= {1, 2, 3}
    assert Counter(decision.rank for decision in decisions).most_common(1)[0][0] == 0


def test_hashes_of_only_some_blocks_credit_only_those(router: Router) -> None:
    request = prompt("a", list(range(20)))
    router.index.store(0, request.block_hashes)
    decision = router.chooser.choose(
        Prompt("a", request.block_hashes[:1], 20, BLOCK_SIZE), ALL_EXACT, now=0.0
    )
    assert decision.cached_tokens == BLOCK_SIZE
