"""What the benchmark of policies prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.routing import main


def test_the_last_line_has_every_policy_and_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    line = {"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2]}
    trace.write_text("".join(json.dumps(line | {"timestamp": 8000 * number}) + "\n" for number in range(8)))
    main(
        [
            "--trace",
            str(trace),
            "--ranks",
            "8,16",
            "--speeds",
            "2",
            "--policies",
            "round_robin,predicted_ttft",
        ]
    )
    captured = capsys.readouterr()
    printed = json.loads(captured.out.splitlines()[-1])
    assert list(printed["policies"]) == ["round_robin", "predicted_ttft"]
    assert printed["policies"]["round_robin"]["hit_rate"] == 0
    assert printed["policies"]["round_robin"]["ttft_mean_s"] == pytest.approx(0.128)
    assert printed["policies"]["predicted_ttft"]["hit_rate"] == pytest.approx(7 / 16)
    assert [(each["ranks"], each["speed"]) for each in printed["cells"]] == [(8, 2), (16, 2)]
    assert printed["cells"][0]["lower_bound"]["ttft_mean_s"] == pytest.approx(0.128 * 9 / 16)
    assert printed["cells"][0]["bound_of_caches"] == printed["cells"][0]["lower_bound"]
    assert "8 ranks, speed 2" in captured.err


def test_made_up_requests_need_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--generate", "50", "--ranks", "2", "--policies", "predicted_ttft"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["policies"]["predicted_ttft"]["ttft_mean_s"] > 0
    assert printed["cells"][0]["lower_bound"] is None


def test_peers_stand_beside_policies(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--generate", "50", "--ranks", "2", "--policies", "llm-d,predicted_ttft"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(printed["policies"]) == ["llm-d", "predicted_ttft"]


def test_agents_have_bounds_and_classes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--agents", "duration_s=100", "--ranks", "2", "--policies", "session"])
    captured = capsys.readouterr()
    (cell,) = json.loads(captured.out.splitlines()[-1])["cells"]
    assert cell["bound_of_caches"]["hit_rate"] >= cell["policies"]["session"]["hit_rate"]
    assert "sweep" in cell["policies"]["session"]["classes"]
    assert "session, by class of request" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trace", "none.jsonl"], "No such file"),
        (["--generate", "5", "--policies", "best"], "'best': allowed are predicted_ttft"),
        (["--generate", "5", "--ranks", "0"], "--ranks"),
        (
            ["--generate", "5", "--preset", "delayed", "--policies", "dynamo"],
            "--policies = dynamo: these need `rank.decode: null`",
        ),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
