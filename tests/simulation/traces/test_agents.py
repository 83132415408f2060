"""Agents: what their requests share, how often what happens, and what is refused."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from app.errors import ConfigError
from app.simulation.traces.agents import Agents
from app.simulation.traces.options import agents_from, describe_agents
from app.simulation.traces.request import SimulatedRequest

LIVELY = Agents(
    duration_s=4000,
    sessions_per_s=0.1,
    turns=10,
    sub_agent_share=0.2,
    edit_share=0.1,
    max_blocks=20,
    think_median_s=5,
)


def shared(one: SimulatedRequest, other: SimulatedRequest) -> int:
    """How many leading blocks are equal."""
    pairs = zip(one.block_ids, other.block_ids, strict=False)
    return next((depth for depth, (a, b) in enumerate(pairs) if a != b), len(one.block_ids))


def by_session(requests: list[SimulatedRequest]) -> dict[str, list[SimulatedRequest]]:
    sessions = defaultdict(list)
    for each in requests:
        if each.session_id is not None:
            sessions[each.session_id].append(each)
    return sessions


def test_a_seed_always_makes_the_same_requests_in_order() -> None:
    requests = list(LIVELY.requests(16))
    assert requests == list(LIVELY.requests(16))
    assert requests != list(LIVELY.model_copy(update={"seed": 1}).requests(16))
    assert all(one.arrival_s <= other.arrival_s for one, other in pairwise(requests))
    assert requests[-1].arrival_s < 4000
    assert all(each.num_tokens == 16 * len(each.block_ids) for each in requests)
    assert set(Counter(each.request_class for each in requests)) == {
        "first turn",
        "later turn",
        "sub-agent",
        "after an edit",
        "after a cut",
        "sweep",
    }


def test_a_turn_has_the_prompt_before_it_unless_that_was_cut_or_edited() -> None:
    requests = list(LIVELY.requests(16))
    systems = {each.block_ids[:8] for each in requests if each.session_id}
    assert len(systems) == 4
    for session_id, turns in by_session(requests).items():
        is_sub_agent = session_id.count(".") == 1
        assert len({each.block_ids[:8] for each in turns}) == 1
        assert (turns[0].request_class == "first turn") != is_sub_agent
        for before, turn in pairwise(turns):
            kept = shared(before, turn)
            if turn.request_class == "later turn":
                assert kept == len(before.block_ids) < len(turn.block_ids)
            elif turn.request_class == "after an edit":
                assert 8 <= kept < len(before.block_ids) < len(turn.block_ids)
            elif turn.request_class == "after a cut":
                # An edit may have come first.
                assert 8 <= kept <= 8 + LIVELY.kept_blocks
                assert len(turn.block_ids) <= 8 + 20 + 20
            else:
                assert is_sub_agent
                assert turn.request_class == "sub-agent"


def test_a_sub_agent_begins_with_a_part_of_its_sessions_prompt() -> None:
    sessions = by_session(list(LIVELY.requests(16)))
    parts = []
    for session_id, turns in sessions.items():
        owner, _, number = session_id.partition(".")
        if number:
            forked = max(
                (each for each in sessions[owner] if each.arrival_s < turns[0].arrival_s),
                key=lambda each: each.arrival_s,
            )
            parts.append((shared(forked, turns[0]) - 8) / (len(forked.block_ids) - 8))
            # The session waits until it is through.
            later = [each.arrival_s for each in sessions[owner] if each.arrival_s > forked.arrival_s]
            assert all(moment > turns[-1].arrival_s for moment in later)
    assert len(parts) > 100
    assert min(parts) == 0
    assert max(parts) == 1
    assert sum(parts) / len(parts) == pytest.approx(0.5, abs=0.1)


def test_numbers_and_times_have_their_means() -> None:
    agents = Agents(duration_s=20_000, turns=5, sub_agent_share=0, edit_share=0, think_median_s=8)
    requests = list(agents.requests(16))
    sessions = by_session(requests)
    whole = [turns for turns in sessions.values() if turns[0].arrival_s < 19_000]
    assert len(sessions) == pytest.approx(20_000 * 0.2, rel=0.05)
    assert sum(map(len, whole)) / len(whole) == pytest.approx(5, rel=0.05)
    gaps = sorted(b.arrival_s - a.arrival_s for turns in whole for a, b in pairwise(turns))
    assert gaps[len(gaps) // 2] == pytest.approx(8, rel=0.05)
    # A log-normal's upper quartile is exp(0.6745 sigma) times its median.
    assert gaps[3 * len(gaps) // 4] == pytest.approx(8 * 2.246, rel=0.08)
    sweep = [each for each in requests if each.request_class == "sweep"]
    assert len(sweep) == pytest.approx(20_000 * 0.5, rel=0.05)
    assert len({each.block_ids[:4] for each in sweep}) == 1
    assert len({each.block_ids[4:] for each in sweep}) == len(sweep)
    systems = Counter(turns[0].block_ids[:8] for turns in sessions.values()).most_common()
    assert systems[0][1] / systems[3][1] == pytest.approx(4, rel=0.25)


def test_a_command_line_names_parameters() -> None:
    words = ["duration_s=500", "turns=3", "documents_per_s=0", "seed=7"]
    expected = Agents(duration_s=500, turns=3, documents_per_s=0, seed=7)
    assert agents_from(words, 32) == list(expected.requests(32))
    described = describe_agents()
    assert all(f"  {name}={field.default}\n" in described for name, field in Agents.model_fields.items())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("turns", "--agents turns: Input should be NAME=VALUE"),
        ("turn=3", "agents.turn: unknown key; allowed here: duration_s, sessions_per_s, turns,"),
        ("turns=0.5", "agents.turns = 0.5: Input should be greater than or equal to 1"),
        ("max_blocks=2.5", "agents.max_blocks = 2.5: Input should be a valid integer"),
        ("seed=[", "agents.seed = '[': Input should be a valid integer"),
        ("duration_s=1e-6", "agents.duration_s = 1e-06: no request comes in that time"),
    ],
)
def test_a_wrong_parameter_is_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        agents_from([word], 16)
