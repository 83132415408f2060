"""Traces: what is read, what is refused, what is made up."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.simulation.traces.request import SimulatedRequest, speed_up
from app.simulation.traces.shared_prefixes import SharedPrefixes
from app.simulation.traces.trace import read_trace

LINE = {"timestamp": 500, "input_length": 1025, "output_length": 7, "hash_ids": [0, 8, 9]}


def write(folder: Path, *lines: object) -> Path:
    file = folder / "trace.jsonl"
    file.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines))
    return file


def test_reads_mooncakes_lines(tmp_path: Path) -> None:
    requests = read_trace(write(tmp_path, LINE, "", LINE | {"timestamp": 1500.5, "more": 1}))
    assert requests == [
        SimulatedRequest(0.5, 1025, 7, (0, 8, 9)),
        SimulatedRequest(1.5005, 1025, 7, (0, 8, 9)),
    ]
    assert [each.arrival_s for each in speed_up(requests, 2)] == [0.25, 0.75025]


def test_a_line_may_name_a_session_and_a_class(tmp_path: Path) -> None:
    requests = read_trace(write(tmp_path, LINE | {"session_id": "agent 7", "class": "sub-agent"}, LINE))
    assert [each.session_id for each in speed_up(requests, 2)] == ["agent 7", None]
    assert [each.request_class for each in speed_up(requests, 2)] == ["sub-agent", None]
    with pytest.raises(ConfigError, match=re.escape("Expected `str | null`, got `int` - at `$.session_id`")):
        read_trace(write(tmp_path, LINE | {"session_id": 7}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Input data was truncated"),
        ({"timestamp": 1}, "line 2: Object missing required field `input_length`"),
        (LINE | {"timestamp": -1}, r"line 2: Expected `float` >= 0.0 - at `$.timestamp`"),
        (LINE | {"input_length": 0}, r"line 2: Expected `int` >= 1 - at `$.input_length`"),
        (LINE | {"output_length": "7"}, r"line 2: Expected `int`, got `str` - at `$.output_length`"),
        (LINE | {"hash_ids": [0, -1, 2]}, r"line 2: Expected `int` >= 0 - at `$.hash_ids[1]`"),
        (LINE | {"hash_ids": [0, 1, 2**32]}, r"line 2: Expected `int` <= 4294967295 - at `$.hash_ids[2]`"),
        (
            LINE | {"hash_ids": [0, 1]},
            "line 2: hash_ids has 2 blocks; input_length = 1025 is 3 blocks",
        ),
        (LINE | {"class": 1}, "line 2: Expected `str | null`, got `int` - at `$.class`"),
        (LINE | {"timestamp": 1}, "line 2: timestamp = 1 is before the line above it, 500"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_trace(write(tmp_path, LINE, line))


def test_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="no request in it"):
        read_trace(write(tmp_path, ""))


def test_groups_share_prefixes_and_nothing_else() -> None:
    shape = SharedPrefixes(num_requests=2000, num_groups=3, prefix_blocks=4, own_blocks=2, requests_per_s=50)
    requests = list(shape.requests())
    assert requests == list(shape.requests())
    assert requests != list(shape.model_copy(update={"seed": 1}).requests())
    own = [block for each in requests for block in each.block_ids[4:]]
    assert len(set(own)) == len(own)
    assert {tuple(each.block_ids[:4]) for each in requests} == {tuple(range(k, k + 4)) for k in (0, 4, 8)}
    assert all(each.num_tokens == 512 * len(each.block_ids) for each in requests)
    assert requests[-1].arrival_s == pytest.approx(40, rel=0.1)
    assert len(own) / len(requests) == pytest.approx(2, rel=0.1)
    counts = [sum(each.block_ids[0] == 4 * group for each in requests) for group in range(3)]
    assert counts[0] / counts[2] == pytest.approx(3, rel=0.3)
