"""How many ranks a load needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config import load_config
from app.deployments.autoscaling.policy import (
    HEADROOM,
    MAX_PREFILL_BUSY,
    RankLoad,
    RankPolicy,
    Targets,
    desired_ranks,
)
from app.deployments.autoscaling.ray_settings import ray_autoscaling

TARGETS = Targets(queue_wait_s=2.0, usage=0.8)

shares = st.floats(0, 10)
rank_loads = st.builds(RankLoad, st.integers(0, 100).map(float), st.floats(0, 1000), shares, st.floats(0, 1))
sizes = st.integers(0, 1024)


def loads_of(count: int, **each: float) -> list[RankLoad]:
    """So many ranks that all have this load."""
    return [RankLoad(num_requests=1, **each)] * count


@pytest.mark.parametrize(
    ("loads", "now", "desired"),
    [
        pytest.param([], 0, 0, id="nothing, from nothing"),
        pytest.param([RankLoad()], 1, 0, id="the last one has nothing to do"),
        pytest.param(loads_of(1), 1, 1, id="the last one has a request"),
        pytest.param(loads_of(1, queue_wait_s=2.0), 1, 1, id="a queue as long as it may be"),
        pytest.param(loads_of(1, queue_wait_s=2.1), 1, 2, id="a longer queue"),
        pytest.param(loads_of(2, queue_wait_s=10), 2, 10, id="much work: all ranks that it needs, at once"),
        pytest.param([*loads_of(1, queue_wait_s=6), RankLoad()], 2, 3, id="however it is spread"),
        pytest.param(loads_of(2, usage=0.81), 2, 3, id="memory"),
        pytest.param(loads_of(2, usage=2.0), 2, 5, id="memory that requests wait for"),
        pytest.param(loads_of(4, prefill_busy_s=1.0), 4, 4, id="busy without a queue: enough"),
        pytest.param(loads_of(2, usage=0.31), 2, 1, id="one holds what both do"),
        pytest.param(loads_of(2, usage=0.33), 2, 2, id="one would hold it without headroom"),
        pytest.param(loads_of(2, prefill_busy_s=0.33), 2, 2, id="one would have to compute all the time"),
        pytest.param([RankLoad()] * 3, 3, 2, id="at most half at a time"),
        pytest.param([RankLoad()] * 16, 16, 8, id="at most half at a time"),
    ],
)
def test_ranks_for_a_load(loads: Sequence[RankLoad], now: int, desired: int) -> None:
    assert desired_ranks(loads, TARGETS, now=now) == desired


def test_a_request_that_waits_for_any_rank_needs_one() -> None:
    assert desired_ranks([], TARGETS, now=0, num_queued=0.1) == 1
    assert desired_ranks([RankLoad()], TARGETS, now=1, num_queued=0.1) == 1


def test_no_rank_goes_while_one_has_said_nothing() -> None:
    assert desired_ranks([RankLoad()], TARGETS, now=4, complete=False) == 4
    assert desired_ranks(loads_of(1, queue_wait_s=20), TARGETS, now=4, complete=False) == 10


@given(st.lists(rank_loads, max_size=8), sizes, st.floats(0, 100), st.booleans())
def test_never_none_while_there_is_work(
    loads: list[RankLoad], now: int, num_queued: float, complete: bool
) -> None:
    desired = desired_ranks(loads, TARGETS, now=now, num_queued=num_queued, complete=complete)
    has_work = num_queued > 0 or any(load.num_requests > 0 for load in loads)
    assert desired >= has_work
    assert desired >= now - max(1, now // 2)


@given(st.lists(rank_loads, max_size=8), sizes)
def test_what_is_desired_is_enough(loads: list[RankLoad], now: int) -> None:
    """Spread evenly over them, the load is within the targets; where ranks go, within `HEADROOM` of them."""
    desired = desired_ranks(loads, TARGETS, now=now)
    share = HEADROOM if desired < now else 1.0
    allowed = desired * share * (1 + 1e-9)
    assert sum(load.queue_wait_s for load in loads) <= TARGETS.queue_wait_s * allowed
    assert sum(load.usage for load in loads) <= TARGETS.usage * allowed
    if desired < now:
        assert sum(load.prefill_busy_s for load in loads) <= MAX_PREFILL_BUSY * allowed


@given(st.lists(rank_loads, max_size=8), sizes)
def test_it_settles(loads: list[RankLoad], now: int) -> None:
    """Under a load that stays, the number goes one way only, and then no further."""
    numbers = [now]
    while (desired := desired_ranks(loads, TARGETS, now=numbers[-1])) != numbers[-1]:
        numbers.append(desired)
    assert numbers in (sorted(numbers), sorted(numbers, reverse=True))


@given(st.lists(rank_loads, max_size=8), rank_loads, sizes)
def test_more_load_never_needs_fewer_ranks(loads: list[RankLoad], more: RankLoad, now: int) -> None:
    assert desired_ranks([*loads, more], TARGETS, now=now) >= desired_ranks(loads, TARGETS, now=now)


@dataclass
class Sample:
    timestamp: float
    value: float


@dataclass
class Context:
    """What Ray would give a policy."""

    target_num_replicas: int
    running_replicas: Sequence[str]
    raw_metrics: dict[str, dict[str, list[Sample]]] | None = field(default_factory=dict)
    total_queued_requests: float = 0.0

    def report(self, replica: str, at: float, load: RankLoad) -> None:
        assert self.raw_metrics is not None
        for name, value in load.as_stats().items():
            series = self.raw_metrics.setdefault(name, {}).setdefault(replica, [])
            series.append(Sample(at, value))


POLICY = RankPolicy(TARGETS.queue_wait_s, TARGETS.usage)


def test_the_last_report_of_each_rank_counts() -> None:
    context = Context(target_num_replicas=1, running_replicas=["a"])
    context.report("a", 0.0, RankLoad(num_requests=9, queue_wait_s=50))
    context.report("a", 1.0, RankLoad(num_requests=1, queue_wait_s=5))
    context.report("stopped", 1.0, RankLoad(num_requests=9, queue_wait_s=50))
    assert POLICY(context) == (3, {})


def test_how_busy_ranks_are_comes_from_all_reports_of_the_window() -> None:
    context = Context(target_num_replicas=2, running_replicas=["a", "b"])
    for replica in context.running_replicas:
        context.report(replica, 0.0, RankLoad(prefill_busy_s=100.0))
    assert POLICY(context) == (1, {})
    for replica in context.running_replicas:
        context.report(replica, 10.0, RankLoad(prefill_busy_s=104.0))
    assert POLICY(context) == (2, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_reports_that_make_no_sense_are_none(value: float) -> None:
    context = Context(target_num_replicas=2, running_replicas=["a", "b"])
    context.report("a", 0.0, RankLoad())
    context.report("b", 0.0, RankLoad(queue_wait_s=value))
    assert POLICY(context) == (2, {})


def test_nothing_reported_yet() -> None:
    assert POLICY(Context(target_num_replicas=2, running_replicas=["a"], raw_metrics=None)) == (2, {})
    assert POLICY(Context(target_num_replicas=1, running_replicas=[])) == (0, {})


CONTROLLER = """
import pickle, sys
sys.modules["app"] = None  # not installed
policy = pickle.loads(sys.stdin.buffer.read())(target_queue_wait_s=2.0, target_usage=0.8)
class Context: target_num_replicas, running_replicas, raw_metrics, total_queued_requests = 0, [], {}, 1.0
print(policy(Context()), "torch" in sys.modules)
"""


def test_the_controller_needs_nothing_of_this_package(tmp_path: Path) -> None:
    settings = load_config({"autoscaling": {"min_ranks": 0, "max_ranks": 3}}).autoscaling
    assert settings is not None
    policy = ray_autoscaling(settings).policy.get_serialized_policy_def()
    command = [sys.executable, "-c", CONTROLLER]
    done = subprocess.run(command, input=policy, capture_output=True, cwd=tmp_path, timeout=60)
    assert done.stdout.decode().strip() == "(1, {}) False", done.stderr.decode()


def test_reports_are_fewer_where_there_are_many_ranks() -> None:
    def interval_s(max_ranks: int) -> float:
        settings = load_config({"autoscaling": {"max_ranks": max_ranks}}).autoscaling
        assert settings is not None
        result: float = ray_autoscaling(settings).metrics_interval_s
        return result

    assert [interval_s(each) for each in (1, 50, 200, 1024)] == [1.0, 1.0, 4.0, 10.0]
