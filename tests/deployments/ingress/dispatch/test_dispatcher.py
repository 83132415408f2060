"""Choice, death, retry, cancel and release: the dispatcher between routers and ranks that are fakes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest

from app import hashing
from app.deployments.messages import NotAddressed, Refusal
from app.errors import (
    EngineFailedError,
    InvalidRequestError,
    NoRankError,
    NoRouterError,
    QueueFullError,
    RankCallError,
    RankFailedError,
    RankGoneError,
    RequestError,
)
from app.generation import GenerateRequest, SamplingParams, TokenChunk
from tests.support.dispatch_rig import BLOCK_SIZE, FIRST, LAST, RANKS, REQUEST, A, B, Rig
from tests.support.fake_deployments import (
    RankStep,
    RouterAnswer,
    Silence,
)


async def test_the_first_choice_answers() -> None:
    rig = Rig(RANKS, {"a": [FIRST, LAST]})
    assert await rig.tokens() == (0, [7, 8])
    assert rig.ranks.requests == [(REQUEST, "a")]
    assert rig.results == [(0, "answering"), (0, "finished")]
    assert len(rig.routers.asked) == 1
    assert rig.cancelled == {"a": 1}
    assert rig.routers.failed == []
    assert rig.routers.released.empty()


async def test_the_outcomes_have_the_request_and_its_time_to_first_token() -> None:
    rig = Rig(RANKS, {"a": [RankGoneError("gone")], "b": [FIRST, LAST]})
    await rig.tokens()
    died, answering, finished = rig.outcomes
    assert {outcome.request_id for outcome in rig.outcomes} == {"r"}
    assert died.ttft_s is None
    assert answering.ttft_s is not None
    assert answering.ttft_s >= 0
    assert finished.ttft_s == answering.ttft_s


DEAD: dict[str, list[RankStep]] = {
    "its replica is gone": [RankGoneError("gone")],
    "its stream ends at once": [],
    "another replica answers": [NotAddressed()],
    "its engine is broken": [Refusal(EngineFailedError("broke"))],
}


@pytest.mark.parametrize("case", DEAD)
async def test_a_rank_that_is_dead_before_the_first_token_is_reported_and_another_one_tried(
    case: str,
) -> None:
    rig = Rig(RANKS, {"a": DEAD[case], "b": [FIRST, LAST]})
    assert await rig.tokens() == (1, [7, 8])
    assert rig.routers.failed == [(0, "a")]
    assert [asked.exclude for asked in rig.routers.asked] == [frozenset(), frozenset({A})]
    assert [replica_id for _, replica_id in rig.ranks.requests] == ["a", "b"]
    assert rig.results == [(0, "died"), (1, "answering"), (1, "finished")]
    assert rig.cancelled == {"a": 1, "b": 1}
    assert rig.routers.released.empty()


async def test_every_rank_that_died_is_excluded_from_the_next_choice() -> None:
    dead = RankGoneError("gone")
    rig = Rig(RANKS, {"a": [dead], "b": [dead], "c": [FIRST, LAST]})
    assert await rig.tokens() == (2, [7, 8])
    assert [asked.exclude for asked in rig.routers.asked] == [set(), {A}, {A, B}]
    assert rig.routers.failed == [(0, "a"), (1, "b")]


@pytest.mark.parametrize(
    ("max_retries", "tried"), [(0, "rank 0 died"), (2, "rank 0 died; rank 1 died; rank 2 died")]
)
async def test_when_all_retries_are_used_no_rank_is_left(max_retries: int, tried: str) -> None:
    calls = {each.replica_id: [RankGoneError("gone")] for each in RANKS}
    rig = Rig(RANKS, calls, {"max_retries": max_retries})
    with pytest.raises(NoRankError) as caught:
        await rig.tokens()
    assert caught.value.message == f"no further rank is tried (ingress.max_retries = {max_retries}); {tried}"
    assert len(rig.routers.asked) == len(rig.routers.failed) == max_retries + 1
    assert rig.results == [(rank, "died") for rank in range(max_retries + 1)]
    assert await rig.is_released()


async def test_when_no_rank_is_left_the_client_reads_why_those_that_were_tried_failed() -> None:
    down = Refusal(EngineFailedError("worker http://w:1 refuses connections"))
    rig = Rig([RANKS[0], RANKS[1], NoRankError("no rank is alive")], {"a": [down], "b": []})
    with pytest.raises(NoRankError) as caught:
        await rig.tokens()
    assert caught.value.message == (
        "no rank is alive; rank 0 failed (worker http://w:1 refuses connections); rank 1 died"
    )
    assert rig.routers.failed == [(0, "a"), (1, "b")]
    assert await rig.is_released()


@pytest.mark.parametrize(
    ("refusal", "result"),
    [(QueueFullError("full"), "queue_full"), (InvalidRequestError("wrong"), "failed")],
    ids=["with a code", "without a code"],
)
async def test_a_request_that_the_rank_refuses_is_not_tried_again(refusal: RequestError, result: str) -> None:
    rig = Rig(RANKS, {"a": [Refusal(refusal)]})
    with pytest.raises(type(refusal)) as caught:
        await rig.tokens()
    assert caught.value is refusal
    assert rig.results == [(0, result)]
    assert rig.routers.failed == []
    assert rig.cancelled == {"a": 1}
    assert await rig.is_released()


@pytest.mark.parametrize("error", [RankFailedError("bug"), RankCallError("broke off")])
async def test_a_call_that_fails_on_a_rank_that_lives_is_made_elsewhere_and_the_rank_stays(
    error: RankCallError,
) -> None:
    rig = Rig(RANKS, {"a": [error], "b": [FIRST, LAST]})
    assert await rig.tokens() == (1, [7, 8])
    assert rig.results == [(0, "broke_off"), (1, "answering"), (1, "finished")]
    assert rig.routers.failed == []
    assert rig.cancelled == {"a": 1, "b": 1}
    assert rig.routers.released.empty()


async def test_a_router_that_is_back_after_a_while_is_asked_again() -> None:
    silent = NoRouterError("no router answers")
    rig = Rig([silent, silent, silent, RANKS[0]], {"a": [FIRST, LAST]})
    assert await rig.tokens() == (0, [7, 8])
    assert len(rig.routers.asked) == 4
    assert rig.routers.released.empty()


async def test_a_router_that_does_not_come_back_is_an_error() -> None:
    silent = NoRouterError("silent")
    rig = Rig([silent] * 1_000_000, {}, router_patience_s=0.01)
    with pytest.raises(NoRouterError, match="no router answers"):
        await rig.tokens()
    assert rig.routers.asked
    assert rig.outcomes == []
    assert await rig.is_released()


async def test_a_request_that_no_rank_can_take_is_refused_at_once() -> None:
    unroutable = NoRankError("all ranks are excluded")
    rig = Rig([unroutable], {})
    with pytest.raises(NoRankError, match=r"^all ranks are excluded$"):
        await rig.tokens()
    assert len(rig.routers.asked) == 1
    assert rig.ranks.requests == []
    assert await rig.is_released()


async def test_a_caller_that_leaves_while_the_router_is_asked_releases_what_it_may_have_reserved() -> None:
    silence = Silence()
    rig = Rig([silence], {})
    caller = asyncio.create_task(rig.tokens())
    await silence.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert rig.ranks.requests == []
    assert rig.outcomes == []
    assert await rig.is_released()


async def test_a_caller_that_leaves_before_the_first_token_aborts_the_request() -> None:
    silence = Silence()
    rig = Rig(RANKS, {"a": [silence]})
    caller = asyncio.create_task(rig.tokens())
    await silence.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert rig.results == [(0, "aborted")]
    assert rig.cancelled == {"a": 1}
    assert rig.routers.failed == []
    assert await rig.is_released()


async def test_a_caller_that_leaves_amid_the_answer_aborts_the_request() -> None:
    silence = Silence()
    rig = Rig(RANKS, {"a": [FIRST, silence]})
    caller = asyncio.create_task(rig.tokens())
    await silence.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert rig.results == [(0, "answering"), (0, "aborted")]
    assert rig.cancelled == {"a": 1}
    assert rig.routers.released.empty()


async def test_a_stream_that_is_never_iterated_is_cancelled_all_the_same() -> None:
    rig = Rig(RANKS, {"a": [FIRST, LAST]})
    stream = await rig.dispatcher.start(REQUEST, None, None)
    stream.cancel()
    assert rig.results == [(0, "answering"), (0, "aborted")]
    assert rig.cancelled == {"a": 1}


async def test_every_choice_has_a_higher_number_than_all_before_it() -> None:
    silent, dead = NoRouterError("no router answers"), RankGoneError("gone")
    choices: list[RouterAnswer] = [silent, RANKS[0], silent, silent, RANKS[1], RANKS[2], RANKS[2]]
    rig = Rig(choices, {"a": [dead], "b": [FIRST, LAST], "c": [FIRST, LAST]})
    await rig.tokens()
    await rig.dispatcher.explain(REQUEST, None, None)
    await rig.tokens()
    numbers = [asked.choice_seq for asked in rig.routers.asked]
    assert len(numbers) == len(choices)
    assert all(earlier < later for earlier, later in pairwise(numbers))


async def test_pinned_rank_session_and_salt_reach_the_router_at_every_choice() -> None:
    rig = Rig(RANKS, {"a": [RankGoneError("gone")], "b": [FIRST, LAST]})
    request = GenerateRequest("r", list(range(9)), SamplingParams(2), cache_salt="salt")
    stream = await rig.dispatcher.start(request, 1, "session")
    stream.cancel()
    digests = hashing.chain(request.prompt_token_ids, BLOCK_SIZE, hashing.seed("salt"))
    assert len(digests) == 2
    assert hashing.wire_hashes(digests) != hashing.wire_hashes(
        hashing.chain(request.prompt_token_ids, BLOCK_SIZE, hashing.seed(None))
    )
    assert len(rig.routers.asked) == 2
    for asked in rig.routers.asked:
        assert (asked.request_id, asked.num_tokens) == ("r", 9)
        assert (asked.pinned_rank, asked.session_id) == (1, "session")
        assert asked.block_hashes == hashing.wire_hashes(digests)


async def test_a_prompt_whose_logprobs_are_wanted_has_no_blocks_that_a_cache_could_stand_for() -> None:
    rig = Rig([*RANKS, *RANKS], {"a": [FIRST, RankGoneError("gone")], "b": [LAST]})
    request = GenerateRequest("r", list(range(9)), SamplingParams(2, prompt_logprobs=0))
    stream = await rig.dispatcher.start(request, None, None)
    tokens = [token for chunk in [each async for each in stream] for token in chunk.token_ids]
    stream.cancel()
    first, second = rig.routers.asked
    assert (tokens, first.block_hashes, first.num_tokens) == ([7, 8], [], 9)
    assert len(second.block_hashes) == 2, "the client has had the logprobs"


async def test_an_explanation_asks_for_the_same_and_starts_nothing() -> None:
    rig = Rig([NoRouterError("no router answers"), RANKS[1], RANKS[0]], {"a": [FIRST, LAST]})
    assert await rig.dispatcher.explain(REQUEST, 1, "session") == {"winner": 1}
    assert rig.ranks.requests == []
    assert rig.outcomes == []
    stream = await rig.dispatcher.start(REQUEST, 1, "session")
    stream.cancel()
    _, explained, chosen = rig.routers.asked
    assert explained == replace(chosen, choice_seq=explained.choice_seq)
    assert rig.routers.released.empty()


async def test_an_explanation_that_a_router_refuses_is_its_error_and_releases_nothing() -> None:
    unroutable = NoRankError("no rank")
    rig = Rig([unroutable], {})
    with pytest.raises(NoRankError) as caught:
        await rig.dispatcher.explain(REQUEST, None, None)
    assert caught.value is unroutable
    assert rig.routers.released.empty()


async def test_a_request_of_several_samples_ends_with_the_last_of_them() -> None:
    second = TokenChunk([9], 9, 4, "length", index=1)
    rig = Rig(RANKS, {"a": [FIRST, LAST, second]})
    request = GenerateRequest("r", list(range(9)), SamplingParams(2), n=2)
    assert await rig.tokens(request) == (0, [7, 8, 9])
    assert rig.results[-1] == (0, "finished")


async def test_requests_side_by_side_have_streams_of_their_own() -> None:
    rig = Rig([RANKS[0], RANKS[1]], {"a": [FIRST, LAST], "b": [LAST]})
    served = await asyncio.gather(rig.tokens(), rig.tokens())
    assert sorted(served) == [(0, [7, 8]), (1, [8])]
