"""The order of virtual time."""

from __future__ import annotations

from functools import partial

from app.simulation.clock import Clock


def test_actions_run_by_time_then_in_the_order_of_scheduling() -> None:
    clock, seen = Clock(), []

    def record(name: str) -> None:
        seen.append((name, clock.now))

    def again() -> None:
        record("first")
        clock.schedule(1.0, partial(record, "scheduled by the first"))

    clock.schedule(2.0, partial(record, "late"))
    clock.schedule(1.0, again)
    clock.schedule(1.0, partial(record, "second"))
    clock.run_until(1.5)
    assert seen == [("first", 1.0), ("second", 1.0), ("scheduled by the first", 1.0)]
    assert clock.now == 1.5
    clock.run()
    assert seen[3:] == [("late", 2.0)]
