"""What policies do over many requests: real index, real load book, no Ray and no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import pytest

from app.events.schema import LoadStat
from app.routing.core import RoutingCore
from app.routing.decisions.decision import Decision, Prompt
from app.routing.policies.prediction import admission_s
from app.settings.engine import SchedulerConfig
from tests.support.routing.cores import new_core, new_prompt

HOT = range(400)
"""Tokens of a prefix that many requests share: 0.4 s of prefill."""


def prompt(request_id: str, tokens: Iterable[int], session_id: str | None = None) -> Prompt:
    return new_prompt(request_id, tokens, 20, session_id)


def burst(core: RoutingCore, requests: Sequence[Prompt]) -> list[int]:
    """The ranks of requests that come before any rank has reported."""
    return [core.choose(request, now=0.0).rank for request in requests]


def finish(core: RoutingCore, requests: Sequence[Prompt], ranks: Sequence[int]) -> None:
    """The ranks have answered these requests and hold their blocks now."""
    for request, rank in zip(requests, ranks, strict=True):
        core.index.store(rank, request.block_hashes)
        core.reservations.release(request.request_id)


def num_requests(core: RoutingCore) -> list[int]:
    return [core.load.num_requests(rank) for rank in core.membership.routable]


def hot_requests(numbers: range) -> list[Prompt]:
    """Each has the hot prefix and 100 tokens of its own."""
    return [prompt(f"hot{i}", [*HOT, 1000 + i, *range(99)]) for i in numbers]


def test_a_hot_prefix_spreads_before_its_holder_keeps_a_request_waiting_longer_than_another_rank() -> None:
    core = new_core("predicted_ttft")
    core.index.store(0, prompt("hot", HOT).block_hashes)
    requests = hot_requests(range(12))
    ranks = []
    for request in requests:
        decision = core.choose(request, now=0.0)
        ranks.append(decision.rank)
        # The whole prompt takes an idle rank 0.5 s: no request waits on the holder for more.
        idle = [each for each in decision.considered if each.view.counts.waiting_tokens == 0]
        assert not idle or decision.predicted_ttft_s <= 0.5
    assert set(ranks) == {0, 1, 2, 3}
    finish(core, requests, ranks)
    # All hold it now: the next come to each in equal numbers.
    assert Counter(burst(core, hot_requests(range(200, 300)))) == dict.fromkeys(range(4), 25)


def test_prefix_affinity_spreads_a_hot_prefix_while_its_holder_has_places_in_its_batch() -> None:
    core = new_core("prefix_affinity")
    core.index.store(0, prompt("hot", HOT).block_hashes)
    requests = hot_requests(range(120))
    ranks = burst(core, requests)
    assert ranks[:34] == [0] * 33 + [1]
    assert max(num_requests(core)) <= SchedulerConfig().max_running_requests
    assert max(num_requests(core)) - min(num_requests(core)) <= 33
    finish(core, requests, ranks)
    assert Counter(burst(core, hot_requests(range(200, 300)))) == dict.fromkeys(range(4), 25)


def short_requests(count: int, start: Sequence[int] = ()) -> list[Prompt]:
    return [prompt(f"short{i}", [*start, 5000 + i, *range(99)]) for i in range(count)]


@pytest.mark.parametrize("reported", [False, True], ids=["on its way", "reported"])
def test_no_request_follows_a_long_prompt_not_even_to_the_prefix_that_it_shares(reported: bool) -> None:
    core = new_core("predicted_ttft")
    long = prompt("long", range(20_000))
    rank = core.choose(long, now=0.0).rank
    if reported:
        core.load.report(rank, LoadStat(1, 0, 0, 0, 0, 20_000, 0, 64, 0, 0))
        core.reservations.acknowledge(rank, ["long"])
    # Some of it is computed already, and the short ones could have that for nothing.
    core.index.store(rank, long.block_hashes[:10])
    ranks = Counter(burst(core, short_requests(90, range(200))))
    assert ranks == {other: 30 for other in range(4) if other != rank}


def running(count: int, held_tokens: int, waiting: int = 0, max_running: int = 64) -> LoadStat:
    """A rank of 10,000 tokens of memory, whose requests decode."""
    return LoadStat(count, waiting, held_tokens, 10_000, 0, 0, held_tokens, max_running, 0, 0)


def test_a_rank_full_of_running_requests_is_passed_over_until_waiting_for_it_is_worth_its_prefix() -> None:
    core = new_core("predicted_ttft", dp_size=2)
    request = prompt("a", range(2000))
    core.index.store(0, request.block_hashes[:80])
    assert core.choose(request, now=0.0).rank == 0
    core.reservations.release("a")
    # 1,600 of 2,000 tokens are cached there, but 9,900 of 10,000 are held, by requests that stay for long.
    core.load.report(0, running(10, 9_900), now=0.0)
    core.load.report(0, running(10, 9_900), now=60.0)
    decision = core.choose(request, now=0.0)
    assert decision.rank == 1
    full = decision.considered[0].view
    # 400 tokens are a request's, as for all that is known, and a whole memory for 60 s did for none yet. What
    # is assumed until then is that it is released as fast as it is computed, which takes 9.9 s.
    assert admission_s(full, 2000) == pytest.approx(300 / 400 * (60 + 9.9 * 400 / 9_900))
    core.reservations.release("a")
    # Now many leave soon: 20 a second, so that 300 tokens are released in 15 ms.
    core.load.report(0, running(0, 0), now=60.0)
    core.load.report(0, running(10, 9_900), now=60.0)
    for second in range(60, 70):
        core.reservations.acknowledge(0, [f"{second}-{number}" for number in range(20)])
        core.load.report(0, running(10, 9_900), now=second + 1.0)
    assert core.choose(request, now=0.0).rank == 0


def test_a_full_batch_is_passed_over_however_much_memory_is_free() -> None:
    core = new_core("predicted_ttft", dp_size=2)
    for now in (0.0, 10.0):
        core.load.report(0, running(8, 800, max_running=8), now=now)
        core.load.report(1, running(7, 9_000, max_running=8), now=now)
    assert core.choose(prompt("a", range(500)), now=0.0).rank == 1
    # On its way, it has the last place there.
    assert core.choose(prompt("b", range(500, 600)), now=0.0).considered[1].view.counts.batch_slot_wait_s > 0


def test_ranks_that_hold_nothing_keep_no_request_waiting_for_memory() -> None:
    core = new_core("predicted_ttft", dp_size=1)
    core.load.report(0, LoadStat(1, 9, 0, 10_000, 0, 20_000, 20_000, 1, 0, 0), now=0.0)
    decision = core.choose(prompt("a", range(500)), now=0.0)
    assert decision.predicted_ttft_s == pytest.approx(20.5)


@pytest.mark.parametrize("policy", ["least_loaded", "prefix_affinity"])
def test_policies_that_count_requests_leave_a_long_prompt_alone_while_others_are_free(
    policy: str,
) -> None:
    core = new_core(policy)
    rank = core.choose(prompt("long", range(20_000)), now=0.0).rank
    assert set(burst(core, short_requests(3))) == {0, 1, 2, 3} - {rank}


def test_power_of_two_keeps_concurrent_requests_closer_together_than_chance() -> None:
    spreads: dict[str, int] = {}
    for policy in ("random", "power_of_two"):
        core = new_core(policy, dp_size=16)
        burst(core, [prompt(f"r{i}", [i]) for i in range(1600)])
        spreads[policy] = max(num_requests(core)) - min(num_requests(core))
    assert spreads["power_of_two"] <= 6 < spreads["random"]


def chi_square(counts: Mapping[int, int], num_bins: int) -> float:
    """Pearson's statistic against equally likely bins."""
    expected = sum(counts.values()) / num_bins
    return sum((counts.get(each, 0) - expected) ** 2 / expected for each in range(num_bins))


SEVEN_DEGREES_AT_1_IN_1000 = 24.32


def test_random_is_uniform_and_its_seed_decides_it() -> None:
    requests = [prompt(f"r{i}", [i]) for i in range(4000)]
    ranks = burst(new_core("random", dp_size=8, seed=1), requests)
    assert chi_square(Counter(ranks), 8) < SEVEN_DEGREES_AT_1_IN_1000
    # Nor does a rank depend on the one before it.
    steps = Counter((after - before) % 8 for before, after in pairwise(ranks))
    assert chi_square(steps, 8) < SEVEN_DEGREES_AT_1_IN_1000
    assert burst(new_core("random", dp_size=8, seed=1), requests) == ranks
    assert burst(new_core("random", dp_size=8, seed=2), requests) != ranks


def homes(core: RoutingCore) -> dict[str, int]:
    """Where each of a thousand sessions is sent, one request after another."""
    found = {}
    for i in range(1000):
        found[f"user-{i}"] = core.choose(prompt("one", [i], session_id=f"user-{i}"), now=0.0).rank
        core.reservations.release("one")
    return found


def test_sessions_spread_evenly_and_every_router_knows_their_ranks() -> None:
    core = new_core("session", dp_size=8)
    before = homes(core)
    assert chi_square(Counter(before.values()), 8) < SEVEN_DEGREES_AT_1_IN_1000
    assert homes(core) == before
    other_router = new_core("session", dp_size=8, seed=6)
    burst(other_router, [prompt(f"r{i}", range(i)) for i in range(1, 9)])
    assert homes(other_router) == before


def test_a_death_moves_only_the_dead_ranks_sessions_and_its_return_brings_them_back() -> None:
    core = new_core("session", dp_size=8)
    before = homes(core)
    core.membership.remove(3)
    during = homes(core)
    moved = {name for name in before if before[name] != during[name]}
    assert moved == {name for name in before if before[name] == 3}
    # They don't all go to the same rank.
    assert set(Counter(during[name] for name in moved)) == set(range(8)) - {3}
    core.membership.set(3, "syncing")
    assert homes(core) == before


def test_a_new_rank_takes_only_its_own_share_of_sessions() -> None:
    before, after = homes(new_core("session", dp_size=7)), homes(new_core("session", dp_size=8))
    assert {after[name] for name in before if before[name] != after[name]} == {7}


def test_a_retried_session_goes_where_it_would_if_the_rank_had_died() -> None:
    core = new_core("session", dp_size=8)
    home = core.choose(prompt("a", [1], session_id="user-1"), now=0.0).rank
    retried = core.choose(prompt("a", [1], session_id="user-1"), now=0.0, exclude=frozenset({home})).rank
    core.membership.remove(home)
    assert core.choose(prompt("a", [1], session_id="user-1"), now=0.0).rank == retried != home


def test_a_busy_session_overflows_to_the_next_rank_of_its_order_and_comes_back() -> None:
    core = new_core("session", dp_size=8)
    requests = [prompt(f"r{i}", [i], session_id="user-1") for i in range(40)]
    ranks = burst(core, requests)
    home, second = ranks[0], ranks[33]
    assert ranks == [home] * 33 + [second] * 7
    finish(core, requests, ranks)
    assert core.choose(prompt("again", [1], session_id="user-1"), now=0.0).rank == home


def test_requests_without_a_session_go_by_predicted_time_and_say_so() -> None:
    core = new_core("session")
    request = prompt("a", HOT)
    core.index.store(2, request.block_hashes)
    decision = core.choose(request, now=0.0)
    assert (decision.rank, decision.policy) == (2, "predicted_ttft")
    assert core.choose(prompt("b", HOT, session_id="user-1"), now=0.0).policy == "session"


def receive(other: RoutingCore, decision: Decision, request: Prompt) -> None:
    other.reservations.add_from_peer(
        decision.rank, request.request_id, decision.uncached_tokens, 0.0, request.choice_seq
    )


@pytest.mark.parametrize("policy", ["predicted_ttft", "least_loaded"])
@pytest.mark.parametrize("lag", [0, 2])
def test_routers_that_know_each_others_reservations_dont_meet_on_one_rank(policy: str, lag: int) -> None:
    """Requests go to two routers in turn; each receives what the other reserved `lag` requests ago."""
    requests = short_requests(64)
    pair, ranks = (new_core(policy), new_core(policy)), list[int]()
    decisions: list[Decision] = []
    for number, request in enumerate(requests):
        decisions.append(pair[number % 2].choose(request, now=0.0))
        ranks.append(decisions[-1].rank)
        if number >= lag:
            receive(pair[(number - lag + 1) % 2], decisions[number - lag], requests[number - lag])
        spread = [ranks.count(rank) for rank in range(4)]
        assert max(spread) - min(spread) <= 1 + lag
    # Routers that receive nothing give every rank's place away twice: both begin with rank 0.
    apart = new_core(policy), new_core(policy)
    meeting = [apart[number % 2].choose(request, now=0.0).rank for number, request in enumerate(requests[:4])]
    assert meeting == [0, 0, 1, 1]
