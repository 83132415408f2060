"""What became of requests, counted."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.chaos.accounting import Ledger, Result, attributed, without_numbers


def failed(**fields: Any) -> Result:
    given: dict[str, Any] = {
        "name": "greedy-0",
        "ended": "failed",
        "cause": "connection: ReadError",
        "by_ingress": False,
        "sent_at": 10.0,
        "ended_at": 20.0,
    }
    return Result(**(given | fields))


@pytest.mark.parametrize(
    ("died_at", "ended"),
    [(5.0, "failed"), (9.0, "lost_with_ingress"), (15.0, "lost_with_ingress"), (21.0, "failed")],
)
def test_a_broken_connection_is_an_ingress_s_death_when_one_died_meanwhile(
    died_at: float, ended: str
) -> None:
    assert attributed(failed(), [1.0, died_at]).ended == ended


def test_what_an_ingress_says_itself_is_never_its_death() -> None:
    assert attributed(failed(by_ingress=True), [15.0]).ended == "failed"


def test_failures_are_counted_by_cause_without_numbers() -> None:
    ledger = Ledger(started_at=0.0)
    for rank in range(7):
        ledger.take(failed(cause=f"error event: rank_died: rank {rank} died", by_ingress=True))
    ledger.take(failed(ended="ok", cause="", first_token_s=0.5, longest_pause_s=2.0))
    ledger.take(failed(ended="aborted", cause="waiting"))
    assert ledger.num_requests == 9
    assert ledger.counts == {"failed": 7, "ok": 1, "aborted": 1}
    assert ledger.causes == {"failed": {"error event: rank_died: rank # died": 7}}
    assert [len(each) for each in ledger.examples.values()] == [5]
    assert ledger.longest_pause == (2.0, "greedy-0")
    assert ledger.longest_first_token == (0.5, "greedy-0")
    (violation,) = ledger.violations()
    assert violation.startswith(
        "7 requests failed: error event: rank_died: rank # died (as greedy-0, sent at 10.0 s"
    )


def test_losses_with_an_ingress_are_no_violations() -> None:
    ledger = Ledger(ingress_deaths=[15.0])
    ledger.take(failed())
    assert ledger.counts == {"lost_with_ingress": 1}
    assert ledger.violations() == []


def test_numbers_and_ids_are_left_out_of_causes() -> None:
    assert without_numbers("replica ab12cd34 is gone after 3.5 s") == "replica # is gone after #.# s"
