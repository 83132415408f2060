"""How many ranks are enough, on a trace where that is plain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.simulation.__main__ import main
from app.simulation.config import ClusterConfig, RankConfig
from app.simulation.traces.request import SimulatedRequest
from app.simulation.what_if import find_ranks

RANK = RankConfig(prefill_tokens_per_s=10.0, block_size=10, num_blocks=100)
BURST = [SimulatedRequest(0.0, 10, 1, [number]) for number in range(12)]
"""Twelve seconds of work at once, all different: n ranks need 12 / n seconds, rounded up."""


@pytest.mark.parametrize(("p99_s", "ranks"), [(12.0, 1), (6.0, 2), (3.0, 4), (2.5, 6), (2.0, 6), (1.0, 12)])
def test_the_least_number_of_ranks_is_found(p99_s: float, ranks: int) -> None:
    answer = find_ranks(ClusterConfig(rank=RANK), BURST, "predicted_ttft", p99_s, max_ranks=20)
    assert answer.ranks == ranks
    assert answer.tried[ranks].ttft_p99_s <= p99_s
    assert list(answer.tried) == sorted(answer.tried)


def test_not_enough_is_an_answer_too() -> None:
    answer = find_ranks(ClusterConfig(rank=RANK), BURST, "predicted_ttft", 0.5, max_ranks=20)
    assert answer.ranks is None
    assert list(answer.tried) == [1, 2, 4, 8, 16, 20]


def test_the_command_prints_table_plot_and_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, config = tmp_path / "trace.jsonl", tmp_path / "cluster.yaml"
    config.write_text("rank: {prefill_tokens_per_s: 10, block_size: 10, num_blocks: 100}")
    lines = ({"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": [k]} for k in range(12))
    trace.write_text("\n".join(map(json.dumps, lines)))
    files = ["--config", str(config), "--trace", str(trace)]
    assert main([*files, "--p99", "3"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["ranks", "hit", "rate", "mean", "s", "p50", "s", "p90", "s", "p99", "s"]
    assert printed[-1] == "4 ranks are enough for a p99 of 3 s: 3.000 s"
    assert "     4 ################|" in printed
    assert main([*files, "--p99", "0.5", "--max-ranks", "3"]) == 1
    assert "3 ranks are not enough for a p99 of 0.5 s: theirs is 4.000 s" in capsys.readouterr().out


def test_agents_need_no_trace_and_have_a_table_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    agents = ["duration_s=300", "sessions_per_s=0.05", "sub_agent_share=0.2", "documents_per_s=0.1"]
    assert main(["--agents", *agents, "--p99", "100"]) == 0
    printed = capsys.readouterr().out.splitlines()
    start = printed.index("1 rank, by class of request")
    assert printed[start + 1].split()[:2] == ["class", "requests"]
    names = {line[:14].strip() for line in printed[start + 2 : printed.index("", start)]}
    assert {"first turn", "later turn", "sub-agent", "sweep"} <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agents", "turns=0", "--p99", "1"], "agents.turns = 0: Input should be"),
        (["--agents", "--trace", "none.jsonl", "--p99", "1"], "not allowed with argument"),
        (["--trace", "none.jsonl", "--p99", "1"], "No such file"),
        (["--trace", "none.jsonl", "--p99", "0"], "--p99"),
        (["--trace", "none.jsonl", "--p99", "1", "--max-ranks", "2000"], "from 1 to 1024"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
