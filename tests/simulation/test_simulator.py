"""Small traces whose figures are worked out by hand, and what holds for all."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigError
from app.routing.policies.registry import POLICIES
from app.simulation.config import ClusterConfig, DecodeConfig, FeedConfig, RankConfig
from app.simulation.results.bounds import bound_of_caches, lower_bound
from app.simulation.results.outcome import Outcome
from app.simulation.simulator import simulate
from app.simulation.traces.request import SimulatedRequest

FIFO = RankConfig(prefill_tokens_per_s=100.0, block_size=10, num_blocks=20)
STEPS = DecodeConfig(fixed_s=0.1, per_request_s=0.1, chunk_tokens=10, max_running_requests=4)
EXACT_FEED = FeedConfig()
BATCHING = FIFO.model_copy(update={"decode": STEPS})


def request(arrival_s: float, *block_ids: int, output_tokens: int = 1) -> SimulatedRequest:
    return SimulatedRequest(arrival_s, 10 * len(block_ids), output_tokens, block_ids)


def cluster(ranks: int, rank: RankConfig = FIFO, feed: FeedConfig = EXACT_FEED) -> ClusterConfig:
    return ClusterConfig(ranks=ranks, rank=rank, feed=feed)


TRACE = [request(0.0, *range(10)), request(0.1, *range(50, 55)), request(0.2, *range(5), 99)]


def test_a_rank_is_a_queue_and_credits_what_it_holds() -> None:
    outcome = simulate(cluster(2), TRACE, "round_robin")
    assert list(outcome.ranks) == [0, 1, 0]
    assert list(outcome.cached_tokens) == [0, 0, 50]
    # The third waits 0.8 s for the first, then computes 10 tokens.
    assert list(outcome.ttfts_s) == pytest.approx([1.0, 0.5, 0.9])
    figures = outcome.figures()
    assert figures.hit_rate == pytest.approx(50 / 210)
    assert figures.ttft_mean_s == pytest.approx(0.8)
    assert figures.ttft_p50_s == pytest.approx(0.9)
    assert figures.imbalance == pytest.approx(110 / 80)


def test_every_missed_token_has_a_reason() -> None:
    again = [*TRACE, request(9.0, *range(10)), request(9.1, *range(30, 50)), request(30.0, *range(5))]
    outcome = simulate(cluster(1), again, "round_robin")
    assert list(outcome.cached_tokens) == [0, 0, 50, 90, 0, 0]
    # The block of the last token is the tail; the fifth evicts everything.
    assert {reason: tokens for reason, tokens in outcome.missed_tokens.items() if tokens} == {
        "new": 90 + 40 + 190,
        "evicted": 40,
        "tail": 6 * 10,
    }


def test_the_policy_sees_queues_and_caches_as_they_are() -> None:
    # Waits of 0.8 s and 0.4 s when the third comes: 10 tokens at the longer queue beat 60 at the shorter one.
    assert list(simulate(cluster(2), TRACE, "predicted_ttft").ranks) == [0, 1, 0]
    without = [*TRACE[:2], request(0.2, *range(70, 76))]
    assert list(simulate(cluster(2), without, "predicted_ttft").ranks) == [0, 1, 1]
    # Queues have gone by the time of the fourth.
    late = [*TRACE, request(9.0, *range(50, 55))]
    assert list(simulate(cluster(2), late, "predicted_ttft").ttfts_s)[3] == pytest.approx(0.1)


def test_the_last_token_of_a_cached_prompt_is_computed() -> None:
    outcome = simulate(cluster(1), [request(0.0, 1, 2, 3), request(5.0, 1, 2, 3)], "predicted_ttft")
    assert list(outcome.cached_tokens) == [0, 20]
    assert outcome.ttfts_s[1] == pytest.approx(0.1)


def test_a_full_cache_evicts_the_least_recently_used() -> None:
    small = FIFO.model_copy(update={"num_blocks": 4})
    trace = [request(0.0, 1, 2), request(1.0, 3, 4), request(2.0, 1, 2), request(3.0, 5, 6)]
    outcome = simulate(cluster(1, small), [*trace, request(4.0, 1, 2), request(5.0, 3, 4)], "predicted_ttft")
    assert list(outcome.cached_tokens) == [0, 0, 10, 0, 10, 0]


def test_steps_are_shared_by_a_prompt_and_those_that_decode() -> None:
    # The first prompt takes 2 steps of 0.2 s; the second 2 of 0.3 s, as the first decodes meanwhile.
    trace = [request(0.0, 1, 2, output_tokens=11), request(0.4, 3, 4)]
    outcome = simulate(cluster(1, BATCHING), trace, "predicted_ttft")
    assert list(outcome.ttfts_s) == pytest.approx([0.4, 0.6])
    # Ten steps later, the first is done: 2 of them took 0.3 s, 8 took 0.2 s, up to 2.6 s.
    # At 2.5 s it has half a step left, which takes 0.15 s with a prompt; the prompt's other half takes 0.1 s.
    still = simulate(cluster(1, BATCHING), [*trace, request(2.5, 5)], "predicted_ttft")
    assert still.ttfts_s[2] == pytest.approx(0.25)
    after = simulate(cluster(1, BATCHING), [*trace, request(2.7, 5)], "predicted_ttft")
    assert after.ttfts_s[2] == pytest.approx(0.2)


def test_a_request_waits_for_memory_that_others_hold() -> None:
    # The first holds 3 of 4 blocks until its 10 further steps of 0.2 s are over; the second needs 2.
    small = BATCHING.model_copy(update={"num_blocks": 4})
    trace = [request(0.0, 1, 2, output_tokens=11), request(0.4, 3, 4)]
    outcome = simulate(cluster(1, small), trace, "predicted_ttft")
    assert list(outcome.ttfts_s) == pytest.approx([0.4, 2.0 + 0.4])


def test_what_is_cached_while_a_request_waits_counts() -> None:
    trace = [request(0.0, 1, 2, 3), request(0.1, 1, 2, 4)]
    outcome = simulate(cluster(1, BATCHING), trace, "round_robin")
    assert list(outcome.cached_tokens) == [0, 20]


@pytest.mark.parametrize(
    "feed", [FeedConfig(event_delay_s=5.0), FeedConfig(event_loss=0.999999, recovery_s=5.0)]
)
def test_what_the_router_does_not_know_yet_it_does_not_credit(feed: FeedConfig) -> None:
    trace = [request(0.0, *range(10)), request(2.0, *range(10)), request(9.0, *range(10))]
    assert list(simulate(cluster(2), trace, "predicted_ttft").ranks) == [0, 0, 0]
    # The second finds both ranks idle and, for all that is known, empty; the third finds both full.
    late = simulate(cluster(2, feed=feed), trace, "predicted_ttft")
    assert list(late.ranks[:2]) == [0, 1]
    assert list(late.cached_tokens) == [0, 0, 90]


SIMULTANEOUS = [request(0.01 * number, *range(10 * number, 10 * number + 10)) for number in range(8)]
"""A second of work each."""


@pytest.mark.parametrize(("peer_delay_s", "most"), [(None, 2), (0.0, 1), (0.005, 1), (0.3, 2)])
def test_routers_take_turns_and_herd_unless_they_receive_each_others_reservations(
    peer_delay_s: float | None, most: int
) -> None:
    feed = FeedConfig(load_interval_s=1.0, load_delay_s=1.0, peer_delay_s=peer_delay_s)
    config = ClusterConfig(ranks=8, routers=2, rank=FIFO, feed=feed)
    outcome = simulate(config, SIMULTANEOUS, "predicted_ttft")
    assert max(Counter(outcome.ranks).values()) == most
    # Neither sends two requests of its own to the same rank.
    for own in (outcome.ranks[::2], outcome.ranks[1::2]):
        assert len(set(own)) == 4
    alone = simulate(config.model_copy(update={"routers": 1}), SIMULTANEOUS, "predicted_ttft")
    assert sorted(alone.ranks) == list(range(8))


def test_a_late_load_report_is_bridged_by_reservations() -> None:
    trace = [request(0.01 * number, *range(10 * number, 10 * number + 10)) for number in range(4)]
    outcome = simulate(
        cluster(4, feed=FeedConfig(load_interval_s=1.0, load_delay_s=1.0)), trace, "predicted_ttft"
    )
    assert sorted(outcome.ranks) == [0, 1, 2, 3]


@pytest.mark.parametrize("rank", [FIFO, BATCHING])
def test_a_request_that_fits_no_rank_is_refused(rank: RankConfig) -> None:
    with pytest.raises(ConfigError, match="num_blocks = 20: request 0 needs 21 blocks"):
        simulate(cluster(1, rank), [request(0.0, *range(21))], "round_robin")


@st.composite
def traces(draw: st.DrawFn) -> list[SimulatedRequest]:
    gaps = draw(st.lists(st.floats(0, 2), min_size=1, max_size=25))
    requests = []
    for number, arrival_s in enumerate(itertools.accumulate(gaps)):
        group, shared, own = draw(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(1, 4)))
        ids = [100 * group + each for each in range(shared)] + [1000 + 10 * number + k for k in range(own)]
        num_tokens = 10 * len(ids) - draw(st.integers(0, 9))
        requests.append(SimulatedRequest(arrival_s, num_tokens, draw(st.integers(1, 30)), ids))
    return requests


FEEDS = st.sampled_from(
    [
        FeedConfig(),
        FeedConfig(event_delay_s=0.3, load_interval_s=0.2, load_delay_s=0.1, peer_delay_s=0.05),
        FeedConfig(event_delay_s=0.1, event_loss=0.5, recovery_s=1.0, load_interval_s=0.5),
    ]
)


@given(
    trace=traces(),
    feed=FEEDS,
    rank=st.sampled_from([FIFO, BATCHING]),
    policy=st.sampled_from(tuple(POLICIES)),
    ranks=st.integers(1, 4),
    routers=st.integers(1, 3),
)
def test_every_request_gets_one_first_token_no_sooner_than_it_can(
    trace: list[SimulatedRequest],
    feed: FeedConfig,
    rank: RankConfig,
    policy: str,
    ranks: int,
    routers: int,
) -> None:
    config = ClusterConfig(ranks=ranks, routers=routers, rank=rank, feed=feed)
    outcome = simulate(config, trace, policy)
    assert len(outcome.ttfts_s) == len(trace)
    for position, each in enumerate(trace):
        assert 0 <= outcome.cached_tokens[position] < each.num_tokens
        computed_s = (each.num_tokens - outcome.cached_tokens[position]) / rank.prefill_tokens_per_s
        assert outcome.ttfts_s[position] >= computed_s - 1e-9
    figures = outcome.figures()
    assert 1 <= figures.imbalance <= ranks + 1e-9
    assert outcome.missed_tokens.total() == sum(outcome.prompt_tokens) - sum(outcome.cached_tokens)
    assert sum(figures.missed_shares.values()) == pytest.approx(1)
    if rank.decode is None:
        bound = lower_bound(config, trace)
        assert figures.hit_rate <= bound.hit_rate + 1e-9
        assert figures.ttft_mean_s >= bound.ttft_mean_s - 1e-9
        sized = bound_of_caches(config, trace)
        assert figures.hit_rate - 1e-9 <= sized.hit_rate <= bound.hit_rate + 1e-9
        assert figures.ttft_mean_s + 1e-9 >= sized.ttft_mean_s >= bound.ttft_mean_s
    assert _story(outcome) == _story(simulate(config, trace, policy))


def _story(outcome: Outcome) -> tuple[list[int], list[float], list[int]]:
    return list(outcome.ranks), list(outcome.ttfts_s), list(outcome.cached_tokens)


def of_class(arrival_s: float, session_id: str | None, name: str | None, *blocks: int) -> SimulatedRequest:
    return SimulatedRequest(arrival_s, 10 * len(blocks), 1, blocks, session_id, name)


def test_every_class_has_figures_of_its_own() -> None:
    trace = [
        of_class(0.0, "a", None, 1, 2),
        of_class(1.0, None, None, 7),
        of_class(2.0, "a", None, 1, 2, 3, 4),
        of_class(3.0, "b", "sub-agent", 1, 2, 3),
        of_class(4.0, "b", None, 1, 2, 3, 5),
        of_class(5.0, "a", None, 9, 8),
    ]
    figures = simulate(cluster(1), trace, "round_robin").figures()
    assert list(figures.classes) == ["first turn", "no session", "later turn", "sub-agent"]
    assert [each.num_requests for each in figures.classes.values()] == [1, 1, 3, 1]
    rates = [each.hit_rate for each in figures.classes.values()]
    assert rates == pytest.approx([0, 0, 50 / 100, 20 / 30])
    later = figures.classes["later turn"]
    assert later.ttft_mean_s == pytest.approx((0.2 + 0.1 + 0.2) / 3)
    assert later.ttft_p50_s == pytest.approx(0.2)
    whole = sum(each.num_requests * each.ttft_mean_s for each in figures.classes.values())
    assert whole / len(trace) == pytest.approx(figures.ttft_mean_s)


def test_sessions_stay_on_their_ranks_under_the_policy_session() -> None:
    # Their prompts have nothing in common, so that only the session's name keeps them together.
    requests = [
        SimulatedRequest(float(turn), 10, 1, (turn * 10 + number,), session_id=f"agent {number}")
        for turn in range(4)
        for number in range(6)
    ]
    ranks = simulate(cluster(3), requests, "session").ranks
    assert [ranks[number::6].tolist() for number in range(6)] == [[rank] * 4 for rank in ranks[:6]]
    assert len(set(ranks)) > 1
