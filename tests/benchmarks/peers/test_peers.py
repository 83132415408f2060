"""Other projects' policies: each formula by hand, and the replay beside the simulator."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.simulation.config import ClusterConfig, DecodeConfig, RankConfig
from app.simulation.simulator import simulate
from app.simulation.traces.agents import Agents
from app.simulation.traces.request import SimulatedRequest
from benchmarks.peers.dynamo import Dynamo
from benchmarks.peers.llm_d import (
    DEFAULT,
    LOAD_AWARE,
    LlmD,
    kv_cache_utilization_scores,
    load_aware_scores,
    prefix_cache_scores,
    queue_scores,
)
from benchmarks.peers.preble import Preble
from benchmarks.peers.registry import PEERS
from benchmarks.peers.replay import Arrival, RankState, can_replay, replay

CONFIG = ClusterConfig(ranks=4, rank=RankConfig(num_blocks=150))
AGENTS = list(Agents(duration_s=80, sessions_per_s=0.5, think_median_s=3).requests(512))


def arrival(*cached_blocks: int, num_blocks: int = 10, now: float = 0.0) -> Arrival:
    return Arrival(now, 10 * num_blocks, range(num_blocks), cached_blocks, 10)


def busy(*requests: tuple[int, Sequence[int]], num_blocks: int = 100) -> RankState:
    """A rank with requests: tokens to compute, blocks."""
    state = RankState(num_blocks)
    for tokens, blocks in requests:
        state.add(1.0, tokens, blocks)
    return state


class LeastAssigned:
    """As `round_robin`: the rank that got the fewest requests."""

    def __init__(self, ranks: int) -> None:
        self.assigned = [0] * ranks

    def choose(self, arrival: Arrival, ranks: Sequence[RankState]) -> int:
        best = self.assigned.index(min(self.assigned))
        self.assigned[best] += 1
        return best


def test_the_replay_is_the_simulator_with_another_choice() -> None:
    replayed = replay(CONFIG, AGENTS, LeastAssigned(4))
    simulated = simulate(CONFIG, AGENTS, "round_robin")
    assert list(replayed.ranks) == list(simulated.ranks)
    assert list(replayed.cached_tokens) == list(simulated.cached_tokens)
    assert list(replayed.ttfts_s) == pytest.approx(list(simulated.ttfts_s))
    figures = replayed.figures()
    assert figures.classes == simulated.figures().classes
    assert figures.prediction_error_s is None


@pytest.mark.parametrize("name", PEERS)
def test_peers_see_what_ranks_have_and_find_prefixes(name: str) -> None:
    figures = replay(CONFIG, AGENTS, PEERS[name](CONFIG)).figures()
    assert figures.hit_rate > simulate(CONFIG, AGENTS, "round_robin").figures().hit_rate
    assert figures == replay_again(figures, name)


def replay_again(figures: object, name: str) -> object:
    again = replay(CONFIG, AGENTS, PEERS[name](CONFIG)).figures()
    times = {field: getattr(figures, field) for field in ("requests_per_s", "choose_us")}
    return type(again)(**{**vars(again), **times})


def test_a_rank_state_forgets_what_is_computed() -> None:
    state = RankState(100)
    state.add(1.0, 30, [1, 2, 3])
    state.add(2.0, 10, [1, 2, 4])
    assert (state.prefill_tokens, set(state.active_blocks)) == (40, {1, 2, 3, 4})
    state.advance(1.0)
    assert (state.prefill_tokens, set(state.active_blocks)) == (10, {1, 2, 4})
    state.advance(5.0)
    assert (state.prefill_tokens, len(state.active_blocks), len(state.requests)) == (0, 0, 0)


def test_llm_ds_scores() -> None:
    ranks = [busy((10, range(20)), (10, range(5))), busy(), busy(*[(10, [1])] * 5)]
    request = arrival(5, 0, 10)
    assert prefix_cache_scores(request, ranks) == [0.5, 0, 1]
    assert kv_cache_utilization_scores(request, ranks) == pytest.approx([0.8, 1, 0.99])
    assert queue_scores(request, ranks) == [0.75, 1, 0]
    assert queue_scores(request, ranks[1:2] * 2) == [1, 1]
    assert load_aware_scores(request, ranks) == pytest.approx([0.5 * 127 / 128, 0.5, 0.5 * 124 / 128])
    # 3 * 0.5 + 2 * 0.8 + 2 * 0.75 = 4.6, 4.0, 4.98
    assert LlmD(DEFAULT, 0).choose(request, ranks) == 2
    assert LlmD(LOAD_AWARE, 0).choose(request, ranks) == 2
    assert LlmD(DEFAULT, 0).choose(arrival(5, 0, 8), ranks) == 0
    ties = {LlmD(DEFAULT, seed).choose(arrival(0, 0), [busy(), busy()]) for seed in range(20)}
    assert ties == {0, 1}


def test_dynamos_cost_counts_blocks() -> None:
    # (30 + 100 - 40) / 10 prefill blocks and 10 + 2 active ones, as blocks 0 and 1 are shared: 21.
    shared = busy((30, [0, 1, 50, 51]))
    # 100 / 10 and 10: 20.
    assert Dynamo(0).choose(arrival(4, 0), [shared, busy()]) == 1
    assert Dynamo(0).choose(arrival(6, 0), [shared, busy()]) == 0
    # Of equal ones, the one that holds less.
    full, empty = busy(), busy()
    full.num_cached_blocks = 7
    assert {Dynamo(seed).choose(arrival(0, 0), [full, empty]) for seed in range(20)} == {1}
    assert {Dynamo(seed).choose(arrival(0, 0), [empty, empty]) for seed in range(20)} == {0, 1}


def test_preble_exploits_a_long_prefix_and_explores_otherwise() -> None:
    ranks = [RankState(100), RankState(100)]
    preble = Preble(2)
    assert preble.choose(arrival(0, 0), ranks) == 0
    # Half a prompt isn't more than the rest: rank 0 has a load of 100 tokens, and saves 50.
    assert preble.choose(arrival(5, 0), ranks) == 1
    assert preble.choose(arrival(6, 0), ranks) == 0
    # Both hold it: the load is 140 and 100.
    assert preble.choose(arrival(10, 10), ranks) == 1
    # After the window no load is left, and rank 0 is the first.
    assert preble.choose(arrival(0, 0, now=181.0), ranks) == 0


def test_preble_prices_what_it_would_evict() -> None:
    ranks = [RankState(10), RankState(10)]
    preble = Preble(2)
    popular = Arrival(0.0, 100, range(10), [0, 0], 10)
    rare = Arrival(0.0, 100, range(100, 110), [0, 0], 10)
    again = Arrival(0.0, 100, range(10), [10, 0], 10)
    assert [preble.choose(each, ranks) for each in (popular, rare, again, again)] == [0, 1, 0, 0]
    # Equal loads: rank 0 would evict blocks that three of four requests use, rank 1 those of one.
    assert preble.choose(Arrival(1.0, 100, range(200, 210), [0, 0], 10), ranks) == 1


def test_peers_know_everything_at_once_and_dont_decode() -> None:
    assert can_replay(CONFIG)
    assert not can_replay(CONFIG.model_copy(update={"routers": 2}))
    decoding = RankConfig(decode=DecodeConfig())
    assert not can_replay(ClusterConfig(rank=decoding))


def test_a_request_needs_no_full_last_block() -> None:
    trace = [SimulatedRequest(float(number), 700, 1, (1, 2)) for number in range(2)]
    assert list(replay(CONFIG, trace, LlmD(DEFAULT, 0)).cached_tokens) == [0, 512]
