"""The outcomes of one call to a rank, and when its stream records them."""

from __future__ import annotations

from app.deployments.ingress.attempt import Attempt, RankStream
from app.errors import RankGoneError
from app.generation import TokenChunk
from app.routing.decisions.decision_log import Outcome
from tests.support.fake_deployments import FakeCall

FIRST, LAST = TokenChunk([7], 9, 4), TokenChunk([8], 9, 4, "stop")


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


async def test_a_stream_records_its_result_once_it_is_cancelled() -> None:
    recorded: list[Outcome] = []
    call = FakeCall([LAST])
    stream = RankStream(1, FIRST, call, Attempt(recorded.append, "r", 1))
    assert [chunk async for chunk in stream] == [FIRST, LAST]
    assert recorded == []
    stream.cancel()
    assert recorded == [Outcome("r", 1, "finished", None)]
    assert call.num_cancelled == 1


async def test_a_stream_that_is_given_up_was_aborted() -> None:
    recorded: list[Outcome] = []
    stream = RankStream(1, FIRST, FakeCall([LAST]), Attempt(recorded.append, "r", 1))
    async for chunk in stream:
        assert chunk == FIRST
        break
    stream.cancel()
    assert [outcome.result for outcome in recorded] == ["aborted"]


async def test_a_rank_that_dies_after_the_last_token_matters_no_more() -> None:
    recorded: list[Outcome] = []
    stream = RankStream(1, LAST, FakeCall([RankGoneError("gone")]), Attempt(recorded.append, "r", 1))
    assert [chunk async for chunk in stream] == [LAST]
    stream.cancel()
    assert [outcome.result for outcome in recorded] == ["finished"]
