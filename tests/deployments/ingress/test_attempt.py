"""News of requests on its way to the routers; only the transport is missing."""

from __future__ import annotations

import asyncio

import pytest

from app.deployments.batch_sender import BatchSender
from app.deployments.ingress.attempt import Attempt
from app.deployments.ingress.receipts import audit_answer, decisions_answer, named_request
from app.errors import UnknownDecisionError
from app.routing.decisions.decision_log import Outcome


async def test_news_is_sent_together_and_in_order() -> None:
    sent: asyncio.Queue[list[Outcome]] = asyncio.Queue()
    outbox = BatchSender(sent.put, interval_s=0.01)
    outcomes = [Outcome(f"r{number}", 0, "finished", 0.1) for number in range(5)]
    for outcome in outcomes[:3]:
        outbox.put(outcome)
    assert sent.empty()
    assert await sent.get() == outcomes[:3]
    for outcome in outcomes[3:]:
        outbox.put(outcome)
    assert await sent.get() == outcomes[3:]


async def test_while_nobody_listens_the_oldest_news_is_given_up() -> None:
    sent: list[list[Outcome]] = []
    listens = asyncio.Event()

    async def send(outcomes: list[Outcome]) -> None:
        await listens.wait()
        sent.append(outcomes)
        if len(sent) == 2:
            done.set()

    done = asyncio.Event()
    outbox = BatchSender(send, interval_s=0.0, max_waiting=10)
    outbox.put(Outcome("first", 0, "finished"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for number in range(100):
        outbox.put(Outcome(f"r{number}", 0, "finished"))
    listens.set()
    await done.wait()
    assert [each.request_id for each in sent[1]] == [f"r{number}" for number in range(90, 100)]


def test_an_attempt_keeps_its_time_to_first_token() -> None:
    noted: list[Outcome] = []
    attempt = Attempt(noted.append, "r", 1)
    attempt.record_first_token()
    attempt.record_result("finished")
    first, last = noted
    assert (first.request_id, first.rank, first.result, last.result) == ("r", 1, "answering", "finished")
    assert first.ttft_s is not None
    assert first.ttft_s == last.ttft_s >= 0
    Attempt(noted.append, "r", 1).record_result("queue_full")
    assert noted[-1] == Outcome("r", 1, "queue_full", None)


@pytest.mark.parametrize("answer_id", ["cmpl-12ab", "chatcmpl-12ab", "12ab"])
def test_a_request_is_named_by_its_answers_id(answer_id: str) -> None:
    assert named_request(answer_id) == "12ab"


def test_attempts_at_different_routers_are_one_request() -> None:
    def attempt(rank: int, decided_at: float, outcome: str, failed_ranks: list[int]) -> dict[str, object]:
        times = {"predicted_ttft_s": 0.1, "actual_ttft_s": 0.2 if outcome == "finished" else None}
        return {
            "winner": rank,
            "decided_at": decided_at,
            "outcome": outcome,
            "failed_ranks": failed_ranks,
            **times,
        }

    died, finished = attempt(0, 2.0, "died", []), attempt(1, 1.9, "finished", [0])
    answer = decisions_answer("r", [[finished], [], [died]])
    assert answer == {
        "request_id": "r",
        "outcome": "finished",
        "rank": 1,
        "failed_ranks": [0],
        "predicted_ttft_s": 0.1,
        "actual_ttft_s": 0.2,
        "attempts": [died, finished],
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
