"""The plan of a run's faults."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.chaos.plan import KINDS, make_plan, num_overlapping

SIZES = (3, 1, 2, 4)


def test_a_seed_has_one_plan() -> None:
    assert make_plan(7, 600, SIZES) == make_plan(7, 600, SIZES)
    assert make_plan(7, 600, SIZES) != make_plan(8, 600, SIZES)


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_happens_and_nothing_after_the_traffic(seed: int) -> None:
    plan = make_plan(seed, 600, SIZES)
    assert {fault.kind for fault in plan} == set(KINDS)
    assert [fault.at_s for fault in plan] == sorted(fault.at_s for fault in plan)
    assert plan[0].at_s > 0
    assert plan[-1].at_s < 600 - 4


@pytest.mark.parametrize("seed", range(20))
def test_even_a_short_run_has_faults_close_together(seed: int) -> None:
    first, second, *_ = make_plan(seed, 15, SIZES)
    assert second.at_s - first.at_s <= 4


@pytest.mark.parametrize("seed", range(5))
def test_a_long_run_ends_in_a_calm_with_more_than_one_rank(seed: int) -> None:
    plan = make_plan(seed, 1800, SIZES)
    assert 1160 < plan[-1].at_s < 1200
    sizes = [fault.dp_size for fault in plan if fault.kind == "resize"]
    assert sizes[-1] > 1


def test_each_resize_is_to_another_size() -> None:
    sizes = [3, *(fault.dp_size for fault in make_plan(3, 3600, SIZES) if fault.kind == "resize")]
    assert len(sizes) > 3
    assert all(one != other for one, other in pairwise(sizes))


@pytest.mark.parametrize("seed", range(20))
def test_one_rank_alone_doesn_t_stay_so(seed: int) -> None:
    plan = make_plan(seed, 1800, SIZES)
    for fault in plan:
        if fault.dp_size == 1:
            following = (each for each in plan if each.kind == "resize" and each.at_s > fault.at_s)
            assert next(following).at_s - fault.at_s < 20 + 4


def test_only_the_wanted_kinds_happen() -> None:
    assert {fault.kind for fault in make_plan(1, 300, SIZES, ["kill_rank"])} == {"kill_rank"}


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], 0),
        ([(0, 5)], 0),
        ([(0, 5), (5, 6)], 0),
        ([(5, 6), (0, 5.5)], 1),
        ([(0, 9), (1, 2), (3, 4)], 2),
        ([(0, 9), (1, 5), (3, float("inf"))], 3),
    ],
)
def test_pairs_that_overlap(intervals: list[tuple[float, float]], expected: int) -> None:
    assert num_overlapping(intervals) == expected
