"""The outcomes of one call to a rank. What a stream makes of its messages is in `test_answer.py`."""

from __future__ import annotations

from app.deployments.ingress.attempt import Attempt
from app.routing.decisions.decision_log import Outcome


def test_an_attempt_keeps_its_time_to_first_token() -> None:
    recorded: list[Outcome] = []
    attempt = Attempt(recorded.append, "r", 1)
    attempt.record_first_token()
    attempt.record_result("finished")
    first, last = recorded
    assert (first.request_id, first.rank, first.result, last.result) == ("r", 1, "answering", "finished")
    assert first.ttft_s is not None
    assert first.ttft_s == last.ttft_s
    assert first.ttft_s >= 0
    Attempt(recorded.append, "r", 1).record_result("queue_full")
    assert recorded[-1] == Outcome("r", 1, "queue_full", None)
