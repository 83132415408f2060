"""What policies do over many requests: real index, real load book, no Ray and no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from random import Random

import pytest

from app.config import PolicyName, RoutingConfig, SchedulerConfig
from app.events.schema import LoadStat
from app.hashing import chain, wire_hash
from app.routing.decisions.chooser import Chooser, Decision, Prompt
from app.routing.index.prefix_index import PrefixIndex
from app.routing.load.load_book import LoadBook
from app.routing.membership import Membership, RoutableRanks
from app.routing.policies.policy import admission_s

BLOCK_SIZE = 20
RATE = 1000.0
HOT = range(400)
"""Tokens of a prefix that many requests share: 0.4 s of prefill."""


def prompt(request_id: str, tokens: Iterable[int], session_id: str | None = None) -> Prompt:
    token_ids = list(tokens)
    hashes = [wire_hash(digest) for digest in chain(token_ids, BLOCK_SIZE)]
    return Prompt(request_id, hashes, len(token_ids), BLOCK_SIZE, session_id)


class World:
    """A router and ranks that say what they hold and how busy they are when told to."""

    def __init__(self, policy: PolicyName, dp_size: int = 4, seed: int = 5) -> None:
        self.index = PrefixIndex()
        self.load = LoadBook(RoutingConfig(initial_prefill_tokens_per_s=RATE))
        self.chooser = Chooser(self.index, self.load, policy, dp_size, Random(seed))
        self.membership = Membership()
        for rank in range(dp_size):
            self.membership.set(rank, "exact")

    @property
    def alive(self) -> RoutableRanks:
        return self.membership.alive

    def choose(self, request: Prompt) -> Decision:
        return self.chooser.choose(request, self.alive, now=0.0)

    def burst(self, requests: Sequence[Prompt]) -> list[int]:
        """The ranks of requests that come before any rank has said a word."""
        return [self.choose(request).rank for request in requests]

    def finish(self, requests: Sequence[Prompt], ranks: Sequence[int]) -> None:
        """The ranks have answered these requests and hold their blocks now."""
        for request, rank in zip(requests, ranks, strict=True):
            self.index.store(rank, request.block_hashes)
            self.chooser.release(request.request_id)

    def num_requests(self) -> list[int]:
        return [self.load.num_requests(rank) for rank in self.alive]


def hot_requests(numbers: range) -> list[Prompt]:
    """Each has the hot prefix and 100 tokens of its own."""
    return [prompt(f"hot{i}", [*HOT, 1000 + i, *range(99)]) for i in numbers]


def test_a_hot_prefix_spreads_before_its_holder_keeps_anybody_waiting_for_longer_than_another_rank() -> None:
    world = World("predicted_ttft")
    world.index.store(0, prompt("hot", HOT).block_hashes)
    requests = hot_requests(range(12))
    ranks = []
    for request in requests:
        decision = world.choose(request)
        ranks.append(decision.rank)
        # The whole prompt takes an idle rank 0.5 s: nobody waits on the holder for more.
        idle = [each for each in decision.considered if each.view.waiting_tokens == 0]
        assert not idle or decision.predicted_ttft_s <= 0.5
    assert set(ranks) == {0, 1, 2, 3}
    world.finish(requests, ranks)
    # All hold it now: the next come to each in equal numbers.
    assert Counter(world.burst(hot_requests(range(200, 300)))) == dict.fromkeys(range(4), 25)


def test_prefix_affinity_spreads_a_hot_prefix_while_its_holder_has_places_in_its_batch() -> None:
    world = World("prefix_affinity")
    world.index.store(0, prompt("hot", HOT).block_hashes)
    requests = hot_requests(range(120))
    ranks = world.burst(requests)
    assert ranks[:34] == [0] * 33 + [1]
    assert max(world.num_requests()) <= SchedulerConfig().max_running_requests
    assert max(world.num_requests()) - min(world.num_requests()) <= 33
    world.finish(requests, ranks)
    assert Counter(world.burst(hot_requests(range(200, 300)))) == dict.fromkeys(range(4), 25)


def short_requests(count: int, start: Sequence[int] = ()) -> list[Prompt]:
    return [prompt(f"short{i}", [*start, 5000 + i, *range(99)]) for i in range(count)]


@pytest.mark.parametrize("reported", [False, True], ids=["on its way", "reported"])
def test_nobody_follows_a_long_prompt_not_even_to_the_prefix_that_it_shares(reported: bool) -> None:
    world = World("predicted_ttft")
    long = prompt("long", range(20_000))
    rank = world.choose(long).rank
    if reported:
        world.load.report(rank, LoadStat(1, 0, 0, 0, 0, 20_000, 0, 64, 0, 0))
        world.load.acknowledge(rank, ["long"])
    # Some of it is computed already, and the short ones could have that for nothing.
    world.index.store(rank, long.block_hashes[:10])
    ranks = Counter(world.burst(short_requests(90, range(200))))
    assert ranks == {other: 30 for other in range(4) if other != rank}


def running(count: int, held_tokens: int, waiting: int = 0, max_running: int = 64) -> LoadStat:
    """A rank of 10,000 tokens of memory, whose requests decode."""
    return LoadStat(count, waiting, held_tokens, 10_000, 0, 0, held_tokens, max_running, 0, 0)


def test_a_rank_full_of_running_requests_is_passed_over_until_waiting_for_it_is_worth_its_prefix() -> None:
    world = World("predicted_ttft", dp_size=2)
    request = prompt("a", range(2000))
    world.index.store(0, request.block_hashes[:80])
    assert world.choose(request).rank == 0
    world.chooser.release("a")
    # 1,600 of 2,000 tokens are cached there, but 9,900 of 10,000 are held, by requests that stay for long.
    world.load.report(0, running(10, 9_900), now=0.0)
    world.load.report(0, running(10, 9_900), now=60.0)
    decision = world.choose(request)
    assert decision.rank == 1
    full = decision.considered[0].view
    # 400 tokens are a request's, as for all that is known, and a whole memory for 60 s did for none yet. What
    # is assumed until then is that it is released as fast as it is computed, which takes 9.9 s.
    assert admission_s(full, 2000) == pytest.approx(300 / 400 * (60 + 9.9 * 400 / 9_900))
    world.chooser.release("a")
    # Now many leave soon: 20 a second, so that 300 tokens are released in 15 ms.
    world.load.report(0, running(0, 0), now=60.0)
    world.load.report(0, running(10, 9_900), now=60.0)
    for second in range(60, 70):
        world.load.acknowledge(0, [f"{second}-{number}" for number in range(20)])
        world.load.report(0, running(10, 9_900), now=second + 1.0)
    assert world.choose(request).rank == 0


def test_a_full_batch_is_passed_over_however_much_memory_is_free() -> None:
    world = World("predicted_ttft", dp_size=2)
    for now in (0.0, 10.0):
        world.load.report(0, running(8, 800, max_running=8), now=now)
        world.load.report(1, running(7, 9_000, max_running=8), now=now)
    assert world.choose(prompt("a", range(500))).rank == 1
    # On its way, it has the last place there.
    assert world.choose(prompt("b", range(500, 600))).considered[1].view.batch_slot_wait_s > 0


def test_ranks_that_hold_nothing_keep_nobody_waiting_for_memory() -> None:
    world = World("predicted_ttft", dp_size=1)
    world.load.report(0, LoadStat(1, 9, 0, 10_000, 0, 20_000, 20_000, 1, 0, 0), now=0.0)
    decision = world.choose(prompt("a", range(500)))
    assert decision.predicted_ttft_s == pytest.approx(20.5)


@pytest.mark.parametrize("policy", ["least_loaded", "prefix_affinity"])
def test_policies_that_count_requests_leave_a_long_prompt_alone_while_others_are_free(
    policy: PolicyName,
) -> None:
    world = World(policy)
    rank = world.choose(prompt("long", range(20_000))).rank
    assert set(world.burst(short_requests(3))) == {0, 1, 2, 3} - {rank}


def test_power_of_two_keeps_concurrent_requests_closer_together_than_chance() -> None:
    spreads: dict[str, int] = {}
    for policy in ("random", "power_of_two"):
        world = World(policy, dp_size=16)
        world.burst([prompt(f"r{i}", [i]) for i in range(1600)])
        spreads[policy] = max(world.num_requests()) - min(world.num_requests())
    assert spreads["power_of_two"] <= 6 < spreads["random"]


def chi_square(counts: Mapping[int, int], num_bins: int) -> float:
    """Pearson's statistic against equally likely bins."""
    expected = sum(counts.values()) / num_bins
    return sum((counts.get(each, 0) - expected) ** 2 / expected for each in range(num_bins))


SEVEN_DEGREES_AT_1_IN_1000 = 24.32


def test_random_is_uniform_and_its_seed_decides_it() -> None:
    requests = [prompt(f"r{i}", [i]) for i in range(4000)]
    ranks = World("random", dp_size=8, seed=1).burst(requests)
    assert chi_square(Counter(ranks), 8) < SEVEN_DEGREES_AT_1_IN_1000
    # Nor does a rank depend on the one before it.
    steps = Counter((after - before) % 8 for before, after in pairwise(ranks))
    assert chi_square(steps, 8) < SEVEN_DEGREES_AT_1_IN_1000
    assert World("random", dp_size=8, seed=1).burst(requests) == ranks
    assert World("random", dp_size=8, seed=2).burst(requests) != ranks


def homes(world: World) -> dict[str, int]:
    """Where each of a thousand sessions is sent, one request after another."""
    found = {}
    for i in range(1000):
        found[f"user-{i}"] = world.choose(prompt("one", [i], session_id=f"user-{i}")).rank
        world.chooser.release("one")
    return found


def test_sessions_spread_evenly_and_every_router_knows_their_ranks() -> None:
    world = World("session", dp_size=8)
    before = homes(world)
    assert chi_square(Counter(before.values()), 8) < SEVEN_DEGREES_AT_1_IN_1000
    assert homes(world) == before
    other_router = World("session", dp_size=8, seed=6)
    other_router.burst([prompt(f"r{i}", range(i)) for i in range(1, 9)])
    assert homes(other_router) == before


def test_a_death_moves_only_the_dead_ranks_sessions_and_its_return_brings_them_back() -> None:
    world = World("session", dp_size=8)
    before = homes(world)
    world.membership.remove(3)
    during = homes(world)
    moved = {name for name in before if before[name] != during[name]}
    assert moved == {name for name in before if before[name] == 3}
    # They don't all go to the same rank.
    assert set(Counter(during[name] for name in moved)) == set(range(8)) - {3}
    world.membership.set(3, "syncing")
    assert homes(world) == before


def test_a_new_rank_takes_only_its_own_share_of_sessions() -> None:
    before, after = homes(World("session", dp_size=7)), homes(World("session", dp_size=8))
    assert {after[name] for name in before if before[name] != after[name]} == {7}


def test_a_retried_session_goes_where_it_would_if_the_rank_had_died() -> None:
    world = World("session", dp_size=8)
    home = world.choose(prompt("a", [1], session_id="user-1")).rank
    retried = world.chooser.choose(
        prompt("a", [1], session_id="user-1"), world.alive, now=0.0, exclude=frozenset({home})
    ).rank
    world.membership.remove(home)
    assert world.choose(prompt("a", [1], session_id="user-1")).rank == retried != home


def test_a_busy_session_overflows_to_the_next_rank_of_its_order_and_comes_back() -> None:
    world = World("session", dp_size=8)
    requests = [prompt(f"r{i}", [i], session_id="user-1") for i in range(40)]
    ranks = world.burst(requests)
    home, second = ranks[0], ranks[33]
    assert ranks == [home] * 33 + [second] * 7
    world.finish(requests, ranks)
    assert world.choose(prompt("again", [1], session_id="user-1")).rank == home


def test_requests_without_a_session_go_by_predicted_time_and_say_so() -> None:
    world = World("session")
    request = prompt("a", HOT)
    world.index.store(2, request.block_hashes)
    decision = world.choose(request)
    assert (decision.rank, decision.policy) == (2, "predicted_ttft")
    assert world.choose(prompt("b", HOT, session_id="user-1")).policy == "session"


def hear_of(other: World, decision: Decision, request: Prompt) -> None:
    other.load.add_peer_reservation(
        decision.rank, request.request_id, decision.uncached_tokens, 0.0, request.choice_seq
    )


@pytest.mark.parametrize("policy", ["predicted_ttft", "least_loaded"])
@pytest.mark.parametrize("lag", [0, 2])
def test_routers_that_hear_of_each_other_dont_meet_on_one_rank(policy: PolicyName, lag: int) -> None:
    """Requests go to two routers in turn; each hears what the other reserved `lag` requests ago."""
    requests = short_requests(64)
    pair, ranks = (World(policy), World(policy)), list[int]()
    decisions: list[Decision] = []
    for number, request in enumerate(requests):
        decisions.append(pair[number % 2].choose(request))
        ranks.append(decisions[-1].rank)
        if number >= lag:
            hear_of(pair[(number - lag + 1) % 2], decisions[number - lag], requests[number - lag])
        spread = [ranks.count(rank) for rank in range(4)]
        assert max(spread) - min(spread) <= 1 + lag
    # Whoever never hears of the other gives every rank's place away twice: both begin with rank 0.
    deaf = World(policy), World(policy)
    meeting = [deaf[number % 2].choose(request).rank for number, request in enumerate(requests[:4])]
    assert meeting == [0, 0, 1, 1]
