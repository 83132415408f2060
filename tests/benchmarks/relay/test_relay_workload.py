"""What the benchmark of the relay promises of its batches."""

from __future__ import annotations

import pytest

from benchmarks.relay.__main__ import KINDS, measure_memory, measure_speed
from benchmarks.relay.workload import Workload


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_credits_every_block_and_takes_it_away_again(kind: str) -> None:
    work = Workload(64, 8, *KINDS[kind], seed=1)
    figures = measure_speed(work) | measure_memory(work)
    assert all(value > 0 for value in figures.values())
