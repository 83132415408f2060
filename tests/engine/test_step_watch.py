"""When an engine counts as standing still, and for how long that may last."""

from __future__ import annotations

import pytest

from app.engine.step_watch import FIRST_STEP_S, REPLACE_AFTER, StepWatch


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def watch(time: Time) -> StepWatch:
    """One that knows that a step takes 2 s."""
    watch = StepWatch(10.0, time)
    step(watch, time, 2.0)
    return watch


def step(watch: StepWatch, time: Time, seconds: float) -> None:
    watch.begin()
    time.now += seconds
    watch.end()


def test_a_step_may_take_the_timeout_more_than_the_longest_so_far(watch: StepWatch, time: Time) -> None:
    step(watch, time, 1.0)
    watch.begin()
    time.now += 12.0
    assert watch.fault() is None
    time.now += 0.5
    assert watch.fault() == "no step for 12 s, though it has work"
    watch.end()
    assert watch.fault() is None


def test_the_first_step_may_take_long_and_one_without_work_is_not_the_first(time: Time) -> None:
    watch = StepWatch(10.0, time)
    watch.begin()
    watch.end(has_computed=False)
    watch.begin()
    time.now += 10.0 + FIRST_STEP_S
    assert watch.fault() is None
    time.now += 0.1
    assert watch.fault() is not None


def test_an_engine_without_work_never_stands_still(watch: StepWatch, time: Time) -> None:
    time.now += 1000.0
    assert watch.fault() is None
    watch.begin()
    time.now += 5.0
    watch.rest()
    time.now += 1000.0
    assert watch.fault() is None


def test_an_hour_of_standing_still_is_not_allowed_the_next_time(watch: StepWatch, time: Time) -> None:
    step(watch, time, 3600.0)
    assert watch.limit_s == 20.0


def test_work_that_was_taken_away_does_not_make_it_go_on(watch: StepWatch, time: Time) -> None:
    watch.begin()
    time.now += 13.0
    watch.rest()
    assert watch.fault() is not None
    watch.end()
    assert watch.fault() is None


def test_it_lasts_from_the_first_look_and_not_from_the_steps_beginning(watch: StepWatch, time: Time) -> None:
    watch.begin()
    time.now += 1000.0  # the process was stopped: nothing could look
    assert watch.lasting_fault() is None
    time.now += REPLACE_AFTER * 10.0
    assert watch.lasting_fault() is None
    time.now += 0.1
    assert watch.lasting_fault() == "no step for 1030 s, though it has work"
    # A step more, and the next one begins to count again.
    watch.end()
    watch.begin()
    time.now += 21.0
    assert watch.fault() is not None
    assert watch.lasting_fault() is None
