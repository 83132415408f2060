"""What becomes of the routers' receipts and audits on their way to the client."""

from __future__ import annotations

import pytest

from app.deployments.ingress.reports.receipts import audit_answer, decisions_answer, named_request
from app.errors import UnknownDecisionError


@pytest.mark.parametrize("answer_id", ["cmpl-12ab", "chatcmpl-12ab", "12ab"])
def test_a_request_is_named_by_its_answers_id(answer_id: str) -> None:
    assert named_request(answer_id) == "12ab"


def test_attempts_at_different_routers_are_one_request() -> None:
    def attempt(rank: int, choice: int, outcome: str) -> dict[str, object]:
        times = {"predicted_ttft_s": 0.1, "actual_ttft_s": 0.2 if outcome == "finished" else None}
        return {
            "winner": rank,
            "choice": choice,
            "outcome": outcome,
            **times,
        }

    overtaken, died = attempt(3, 4, "sent"), attempt(0, 5, "died")
    moved, finished = attempt(2, 6, "moved"), attempt(1, 8, "finished")
    answer = decisions_answer("r", [[moved, finished], [], [overtaken, died]])
    assert answer == {
        "request_id": "r",
        "outcome": "finished",
        "rank": 1,
        "failed_ranks": [0, 2],
        "predicted_ttft_s": 0.1,
        "actual_ttft_s": 0.2,
        "attempts": [overtaken, died, moved, finished],
    }
    with pytest.raises(UnknownDecisionError, match="'r'"):
        decisions_answer("r", [[], []])


@pytest.mark.parametrize(
    ("of_routers", "equal", "status"),
    [
        ([[True, True]], True, 200),
        ([[True], [False]], False, 200),
        ([[True, None]], None, 503),
        ([[None], [False]], False, 503),
    ],
)
def test_an_audit_is_complete_when_every_rank_was_compared(
    of_routers: list[list[bool | None]], equal: bool | None, status: int
) -> None:
    routers = [{"ranks": [{"equal": each} for each in ranks]} for ranks in of_routers]
    answer, given = audit_answer(routers)
    assert (answer["equal"], answer["complete"], given) == (equal, status == 200, status)
    assert answer["routers"] == routers
