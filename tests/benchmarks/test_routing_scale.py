"""What the benchmark of scale prints."""

from __future__ import annotations

import json

import pytest

from benchmarks.routing_scale import main


def test_time_and_memory_for_each_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--ranks", "2,16", "--requests", "60", "--traced-requests", "60"])
    small, large = json.loads(capsys.readouterr().out.splitlines()[-1])["scales"]
    assert (small["ranks"], large["ranks"]) == (2, 16)
    assert small["choose_us"] > 0
    assert 0 < small["router_bytes"] < large["router_bytes"]
