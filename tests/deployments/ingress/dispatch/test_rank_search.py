"""What a request goes through after its rank is lost: the limits, the waits, and what is left behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from app.deployments.messages import Assignment, NotAddressed, Refusal
from app.engine.resuming import cannot_resume
from app.errors import (
    EngineFailedError,
    LiveRequestIdError,
    NoRankError,
    NoRouterError,
    PromptTooLongError,
    QueueFullError,
    RankCallError,
    RankDiedError,
    RankFailedError,
    RankGoneError,
    RequestFailedError,
)
from app.generation import TokenChunk
from tests.support.deadlines import until
from tests.support.dispatch_rig import FIRST, LAST, RANKS, REQUEST, A, B, Rig
from tests.support.fake_deployments import RankStep, RouterAnswer, Silence

GONE = RankGoneError("gone")
PATIENT = {"rank_wait_s": 20.0}

LOST: dict[str, tuple[list[RankStep], str, bool]] = {
    "the replica is gone": ([GONE], "died", True),
    "the stream just ends": ([], "died", True),
    "another replica answers": ([NotAddressed()], "died", True),
    "the engine broke": ([Refusal(EngineFailedError("broke"))], "died", True),
    "the call broke off": ([RankCallError("broke off")], "broke_off", False),
    "the rank's own code failed": ([RankFailedError("bug")], "broke_off", False),
}


@pytest.mark.parametrize("case", LOST)
async def test_a_rank_that_is_lost_after_the_first_token_is_followed_by_another(case: str) -> None:
    rest, result, is_dead = LOST[case]
    rig = Rig(RANKS, {"a": [FIRST, *rest], "b": [LAST]})
    assert await rig.tokens() == (0, [7, 8]), "the rank that began is the answer's"
    assert rig.results == [(0, "answering"), (0, result), (1, "answering"), (1, "finished")]
    assert [outcome.choice_seq for outcome in rig.outcomes] == [0, 0, 1, 1]
    assert rig.routers.failed == ([(0, "a")] if is_dead else [])
    assert [asked.exclude for asked in rig.routers.asked] == [frozenset(), {A}]
    (_, first), (resumed, second) = rig.ranks.requests
    assert (first, second) == ("a", "b")
    assert resumed == replace(REQUEST, earlier_outputs={0: (7,)})
    assert rig.cancelled == {"a": 1, "b": 1}
    assert rig.routers.released.empty()
    assert len(rig.dispatcher.live) == 0


async def test_what_is_said_of_the_prompt_stays_as_the_first_rank_said_it() -> None:
    rig = Rig(RANKS, {"a": [FIRST, GONE], "b": [TokenChunk([8], 9, 0, "stop")]})
    stream = await rig.dispatcher.start(REQUEST, None, None)
    assert [(each.num_prompt_tokens, each.num_cached_tokens) async for each in stream] == [(9, 4)] * 2
    stream.cancel()


@pytest.mark.parametrize(
    ("max_retries", "others"),
    [(0, ""), (1, "; rank 0 died")],
)
async def test_ranks_before_and_after_the_first_token_are_counted_together(
    max_retries: int, others: str
) -> None:
    dies: dict[str, list[RankStep]] = {"b": [FIRST, GONE]}
    if max_retries:
        dies["a"] = [GONE]
    rig = Rig(RANKS[1 - max_retries :], dies, {"max_retries": max_retries})
    with pytest.raises(RankDiedError) as caught:
        await rig.tokens()
    assert (caught.value.status, caught.value.code) == (502, "rank_died")
    assert caught.value.message == (
        "rank 1 died while it answered, and the answer can't go on elsewhere: no further rank is tried "
        f"(ingress.max_retries = {max_retries}){others}"
    )
    assert rig.results[-1] == (1, "died")
    assert await rig.is_released()
    assert len(rig.dispatcher.live) == 0


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (cannot_resume("earlier_outputs", "vLLM can't with seed"), "earlier_outputs: vLLM can't with seed"),
        (PromptTooLongError("too long", param="prompt"), "too long"),
        (RequestFailedError("not finite"), "not finite"),
    ],
)
async def test_what_refuses_to_go_on_is_no_fault_of_the_clients_and_says_why(
    refusal: RankDiedError, reason: str
) -> None:
    rig = Rig(RANKS, {"a": [FIRST, GONE], "b": [Refusal(refusal)]})
    with pytest.raises(RankDiedError) as caught:
        await rig.tokens()
    assert caught.value.message == (
        f"rank 0 died while it answered, and the answer can't go on elsewhere: {reason}"
    )
    assert (caught.value.status, caught.value.param) == (502, None)
    assert rig.results[-1] == (1, refusal.code or "failed")
    assert rig.cancelled == {"a": 1, "b": 1}
    assert await rig.is_released()


async def test_replicas_that_are_gone_before_the_call_do_not_count() -> None:
    gone: list[RankStep] = [NotAddressed()]
    rig = Rig(RANKS, {"a": gone, "b": gone, "c": [FIRST, LAST]}, PATIENT | {"max_retries": 0})
    assert await rig.tokens() == (2, [7, 8])
    assert rig.routers.failed == [(0, "a"), (1, "b")]


async def test_a_router_that_goes_on_believing_in_them_ends_the_request() -> None:
    rig = Rig([RANKS[0]] * 1_000_000, {"a": [NotAddressed()] * 1_000_000}, {"rank_wait_s": 0.01})
    with pytest.raises(NoRankError, match="no rank that a router chose was there; rank 0 was gone already"):
        await rig.tokens()
    assert await rig.is_released()


async def test_an_error_of_the_request_itself_ends_it() -> None:
    rig = Rig(RANKS, {"a": [FIRST, Refusal(RequestFailedError("not finite"))]})
    with pytest.raises(RequestFailedError, match="not finite"):
        await rig.tokens()
    assert rig.results == [(0, "answering"), (0, "request_failed")]
    assert len(rig.routers.asked) == 1


async def test_a_request_waits_for_a_rank_while_there_is_none() -> None:
    nothing = NoRankError("no rank is alive")
    rig = Rig([nothing, nothing, RANKS[0]], {"a": [FIRST, LAST]}, PATIENT)
    assert await rig.tokens() == (0, [7, 8])
    assert len(rig.routers.asked) == 3


async def test_a_new_request_for_a_rank_that_its_client_named_does_not_wait() -> None:
    rig = Rig([NoRankError("rank 0, which the client named, can't take requests now")], {}, PATIENT)
    with pytest.raises(NoRankError, match="which the client named"):
        await rig.tokens(pinned_rank=0)
    assert len(rig.routers.asked) == 1


async def test_one_that_has_lost_its_named_rank_waits_for_its_return() -> None:
    choices: list[RouterAnswer] = [RANKS[0], NoRankError("not alive"), Assignment(0, "new")]
    rig = Rig(choices, {"a": [FIRST, GONE], "new": [LAST]}, PATIENT)
    assert await rig.tokens(pinned_rank=0) == (0, [7, 8])
    # Then there is nothing else to choose, and the router knows whether it is back.
    assert [asked.exclude for asked in rig.routers.asked] == [frozenset(), {A}, frozenset()]
    assert [asked.pinned_rank for asked in rig.routers.asked] == [0, 0, 0]


@pytest.mark.parametrize("refusal", [QueueFullError("full"), LiveRequestIdError("r")])
@pytest.mark.parametrize("before", [[], [FIRST]], ids=["before its first token", "after it"])
async def test_once_a_request_has_had_a_rank_one_that_is_full_is_left_for_another(
    before: list[RankStep], refusal: QueueFullError
) -> None:
    calls: dict[str, list[RankStep]] = {"a": [*before, GONE], "b": [Refusal(refusal)]}
    rig = Rig(RANKS, calls | {"c": [LAST] if before else [FIRST, LAST]}, PATIENT | {"max_retries": 1})
    assert (await rig.tokens())[1] == [7, 8]
    assert rig.results[-1] == (2, "finished")
    assert rig.routers.asked[-1].exclude == {A, B}
    assert rig.routers.failed == [(0, "a")]


async def test_when_all_are_full_the_first_of_them_is_asked_again() -> None:
    full = Refusal(QueueFullError("full"))
    nothing = NoRankError("all have failed")
    choices: list[RouterAnswer] = [RANKS[0], RANKS[1], nothing, RANKS[1]]
    rig = Rig(choices, {"a": [FIRST, GONE], "b": [full, LAST]}, PATIENT)
    assert await rig.tokens() == (0, [7, 8])
    assert [asked.exclude for asked in rig.routers.asked] == [set(), {A}, {A, B}, set()]


async def test_a_wait_for_a_full_queue_ends() -> None:
    full = Refusal(QueueFullError("full"))
    rig = Rig([RANKS[0], RANKS[1]], {"a": [FIRST, GONE], "b": [full]})
    with pytest.raises(RankDiedError, match="can't go on elsewhere: full"):
        await rig.tokens()
    assert await rig.is_released()


async def test_a_router_that_does_not_come_back_ends_the_answer() -> None:
    silent = NoRouterError("silent")
    rig = Rig([RANKS[0], *[silent] * 1_000_000], {"a": [FIRST, GONE]}, router_patience_s=0.01)
    with pytest.raises(RankDiedError, match=r"rank 0 died while it answered.*: no router answers"):
        await rig.tokens()
    assert await rig.is_released()


async def test_a_rank_that_sends_nothing_is_left_after_a_multiple_of_what_was_predicted() -> None:
    limits = {"min_patience_s": 0.0, "patience_factor": 2.0}
    slow, fast = Assignment(0, "a", predicted_ttft_s=0.03), Assignment(1, "b", predicted_ttft_s=1000.0)
    rig = Rig([slow, fast], {"a": [Silence()], "b": [FIRST, LAST]}, limits)
    assert await rig.tokens() == (1, [7, 8])
    assert rig.results[0] == (0, "silent")
    assert rig.routers.failed == [], "for other requests it may be well"


async def test_an_attempt_is_moved_before_its_first_token_and_after_it() -> None:
    first, second = Silence(), Silence()
    rig = Rig(RANKS, {"a": [first], "b": [FIRST, second], "c": [LAST]}, {"max_retries": 0})
    caller = asyncio.create_task(rig.tokens())
    await first.begun.wait()
    (attempt,) = rig.dispatcher.live.on(A)
    attempt.move("it is replaced", planned=True)
    await second.begun.wait()
    (attempt,) = rig.dispatcher.live
    assert (attempt.replica, attempt.has_token) == (B, True)
    attempt.move("it is replaced too", planned=True)
    assert await caller == (1, [7, 8])
    assert rig.results == [
        (0, "moved"),
        (1, "answering"),
        (1, "moved"),
        (2, "answering"),
        (2, "finished"),
    ]
    assert rig.cancelled == {"a": 1, "b": 1, "c": 1}
    assert rig.routers.failed == []
    assert rig.routers.asked[-1].exclude == {A, B}


async def test_a_request_leaves_the_rank_that_it_named_when_that_is_replaced() -> None:
    silence = Silence()
    rig = Rig(RANKS, {"a": [FIRST, silence], "b": [LAST]})
    caller = asyncio.create_task(rig.tokens(pinned_rank=0))
    await silence.begun.wait()
    (attempt,) = rig.dispatcher.live
    attempt.move("it is replaced", planned=True)
    assert await caller == (0, [7, 8])
    assert [asked.pinned_rank for asked in rig.routers.asked] == [0, None]


async def test_a_move_that_finds_no_other_rank_says_why_it_was_made() -> None:
    silence = Silence()
    rig = Rig([RANKS[0], NoRankError("no rank is alive")], {"a": [FIRST, silence]})
    caller = asyncio.create_task(rig.tokens())
    await silence.begun.wait()
    (attempt,) = rig.dispatcher.live
    attempt.move("no step for 12 s")
    with pytest.raises(RankDiedError) as caught:
        await caller
    assert caught.value.message == (
        "rank 0 was left (no step for 12 s) while it answered, and the answer can't go on elsewhere: "
        "no rank is alive"
    )


SILENT_ANSWER: dict[str, tuple[list[RouterAnswer], list[RankStep]]] = {
    "while a router is asked": ([RANKS[0], Silence()], []),
    "while a rank is waited for": ([RANKS[0], RANKS[1]], [Silence()]),
    "amid what another rank answers": ([RANKS[0], RANKS[1]], [FIRST, Silence()]),
}


@pytest.mark.parametrize("case", SILENT_ANSWER)
async def test_a_caller_that_leaves_while_the_answer_is_resumed_leaves_nothing_behind(case: str) -> None:
    choices, script = SILENT_ANSWER[case]
    (silence,) = [step for step in (*choices, *script) if isinstance(step, Silence)]
    rig = Rig(choices, {"a": [FIRST, GONE], "b": script})
    caller = asyncio.create_task(rig.tokens())
    await silence.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert len(rig.dispatcher.live) == 0
    assert rig.cancelled == {"a": 1, "b": len(rig.ranks.requests) - 1}
    if FIRST in script:
        assert rig.results[-1] == (1, "aborted")
        assert rig.routers.released.empty(), "the rank has counted it long ago"
    else:
        assert await rig.is_released()


async def test_a_caller_that_leaves_while_a_rank_is_waited_for_releases_what_may_be_reserved() -> None:
    rig = Rig([NoRankError("none")] * 1_000_000, {}, PATIENT | {"pause_s": 0.01})
    caller = asyncio.create_task(rig.tokens())
    await until(lambda: len(rig.routers.asked) > 2, "a search that goes on")
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await rig.is_released()
