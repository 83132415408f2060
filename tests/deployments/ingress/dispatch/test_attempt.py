"""One call to a rank: its outcomes, how it is lost, and how it is moved."""

from __future__ import annotations

import asyncio

import pytest

from app.deployments.ingress.dispatch.attempt import Attempt, LostRankError
from app.deployments.ingress.dispatch.live_attempts import LiveAttempts
from app.deployments.messages import NotAddressed, RankReplica, Refusal
from app.errors import EngineFailedError, QueueFullError, RankCallError, RankFailedError, RankGoneError
from app.generation import TokenChunk
from app.routing.decisions.decision_log import Outcome
from tests.support.fake_deployments import FakeCall, RankStep, Silence

FIRST, LAST = TokenChunk([7], 9, 4), TokenChunk([8], 9, 4, "stop")
REPLICA = RankReplica(1, "b")


class Rig:
    """An attempt that is live, its call, and its outcomes."""

    def __init__(self, *script: RankStep, patience_s: float = 60.0) -> None:
        self.call = FakeCall(script)
        self.live = LiveAttempts()
        self.outcomes: list[Outcome] = []
        self.attempt = Attempt(
            self.outcomes.append,
            "r",
            REPLICA,
            self.call,
            choice_seq=3,
            patience_s=patience_s,
            on_end=self.live.remove,
        )
        self.live.add(self.attempt)

    async def lost(self) -> LostRankError:
        """How the attempt ends, where it should bring a chunk."""
        with pytest.raises(LostRankError) as caught:
            await self.attempt.next_chunk()
        return caught.value


async def test_an_attempt_keeps_its_time_to_first_token() -> None:
    rig = Rig(FIRST, LAST)
    assert not rig.attempt.has_token
    begun_at = rig.attempt.heard_at
    assert [await rig.attempt.next_chunk(), await rig.attempt.next_chunk()] == [FIRST, LAST]
    assert rig.attempt.has_token
    assert rig.attempt.heard_at > begun_at
    rig.attempt.close("finished")
    rig.attempt.close("aborted")
    first, last = rig.outcomes
    assert (first.request_id, first.rank, first.choice_seq) == ("r", 1, 3)
    assert (first.result, last.result) == ("answering", "finished")
    assert first.ttft_s is not None
    assert first.ttft_s == last.ttft_s
    assert first.ttft_s >= 0
    assert rig.call.num_cancelled == 1


async def test_an_attempt_without_a_token_has_no_time_to_it() -> None:
    rig = Rig()
    rig.attempt.close("aborted")
    assert rig.outcomes == [Outcome("r", 1, "aborted", None, 3)]


LOST: dict[str, tuple[list[RankStep], str, str, bool]] = {
    "its replica is gone": ([RankGoneError("gone")], "died", "rank 1 died", True),
    "its stream ends": ([], "died", "rank 1 died", True),
    "another replica answers": ([NotAddressed()], "died", "rank 1 was gone already", True),
    "its engine broke": ([Refusal(EngineFailedError("broke"))], "died", "rank 1 failed (broke)", True),
    "its code failed": ([RankFailedError("bug")], "broke_off", "rank 1 failed, and its log says why", False),
    "the call broke off": ([RankCallError("?")], "broke_off", "rank 1 broke off the call", False),
    "it is silent": ([Silence()], "silent", "rank 1 sent nothing for 0 s", False),
}


@pytest.mark.parametrize("case", LOST)
@pytest.mark.parametrize("num_chunks", [0, 1])
async def test_a_rank_is_lost(case: str, num_chunks: int) -> None:
    script, result, message, is_dead = LOST[case]
    rig = Rig(*[FIRST] * num_chunks, *script, patience_s=0.05)
    for _ in range(num_chunks):
        await rig.attempt.next_chunk()
    lost = await rig.lost()
    assert (lost.replica, lost.result, str(lost)) == (REPLICA, result, message)
    assert (lost.is_dead, lost.is_planned) == (is_dead, False)
    assert lost.is_failure == (case != "another replica answers"), "then the request broke nothing"


async def test_another_refusal_is_the_requests_error() -> None:
    with pytest.raises(QueueFullError):
        await Rig(Refusal(QueueFullError("full"))).attempt.next_chunk()


@pytest.mark.parametrize("planned", [False, True])
async def test_an_attempt_that_waits_is_moved_at_once(planned: bool) -> None:
    silence = Silence()
    rig = Rig(silence)
    waiting = asyncio.create_task(rig.lost())
    await silence.begun.wait()
    assert (list(rig.live), rig.live.replicas(), len(rig.live)) == ([rig.attempt], [REPLICA], 1)
    rig.attempt.move("hung", planned=planned)
    rig.attempt.move("again")
    assert rig.call.num_cancelled == 1
    assert (rig.live.on(REPLICA), rig.live.replicas(), len(rig.live)) == ([], [], 0)
    lost = await waiting
    assert (lost.result, str(lost)) == ("moved", "rank 1 was left (hung)")
    assert (lost.is_dead, lost.is_planned) == (False, planned)
    rig.attempt.close(lost.result)
    assert rig.outcomes == [Outcome("r", 1, "moved", None, 3)]
    assert rig.call.num_cancelled == 1


async def test_an_attempt_that_nothing_waits_for_is_moved_before_its_next_chunk() -> None:
    rig = Rig(FIRST, LAST)
    await rig.attempt.next_chunk()
    rig.attempt.move("drained")
    assert rig.call.num_cancelled == 1
    assert (await rig.lost()).result == "moved"


async def test_an_attempt_that_is_closed_is_moved_nowhere() -> None:
    rig = Rig(FIRST)
    await rig.attempt.next_chunk()
    rig.attempt.close("finished")
    rig.attempt.move("too late")
    assert rig.call.num_cancelled == 1
    assert [outcome.result for outcome in rig.outcomes] == ["answering", "finished"]


class HidesCancellation(FakeCall):
    """As Ray's call does once it is cancelled: its reader's own cancellation comes out as an error."""

    async def __anext__(self) -> TokenChunk:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.num_cancelled:
                raise RankCallError("the call was cancelled") from None
            raise
        raise AssertionError("the event is never set")


async def test_a_cancellation_that_the_call_hides_is_one_all_the_same() -> None:
    rig = Rig()
    call = HidesCancellation([])
    attempt = Attempt(
        rig.outcomes.append, "r", REPLICA, call, choice_seq=0, patience_s=60.0, on_end=lambda _: None
    )
    waiting = asyncio.create_task(attempt.next_chunk())
    await asyncio.sleep(0)
    attempt.move("hung")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    moved = asyncio.create_task(attempt.next_chunk())
    with pytest.raises(LostRankError):
        await moved
