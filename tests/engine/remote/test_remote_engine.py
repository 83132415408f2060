"""A rank whose engine is a worker by URL, against real workers: what it serves, publishes and says."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from app.engine.remote.engine import RemoteEngine
from app.engine.remote.worker import Expected
from app.errors import EngineFailedError, InvalidRequestError, PromptTooLongError, QueueFullError
from app.generation import SamplingParams, TokenChunk
from app.hashing import chain, seed, wire_hashes
from tests.engine.remote.conftest import NewRemote, NewWorker, until_available
from tests.support.deadlines import until
from tests.support.engine.live_engine import all_of, error_of, new_request, tokens
from tests.support.engine.live_rank import answer
from tests.support.engine.live_worker import LiveWorker
from tests.support.engine.recorded import Recorded
from tests.support.engine.tiny_engine import BLOCK

PROMPT = list(range(5, 26))
GREEDY = SamplingParams(10, temperature=0.0, ignore_eos=True)
KINDS = pytest.mark.parametrize("is_vllm", [False, True], ids=["native", "vllm"])


def names(token_ids: list[int], cache_salt: str | None = None) -> set[int]:
    """Of the full blocks of `token_ids`."""
    return set(wire_hashes(chain(token_ids, BLOCK, seed(cache_salt))))


async def whole(engine: RemoteEngine) -> None:
    await until_available(engine)
    await until(lambda: engine.status.partial_cache is None, lambda: engine.status)


async def content_of(engine: RemoteEngine) -> set[int]:
    future = engine.content(lambda blocks: {block.hash for block in blocks})
    return await asyncio.wrap_future(future)


async def truth_of(worker: LiveWorker) -> set[int]:
    blocks = await worker.rank.call(lambda engine: engine.cached_blocks())
    return {block.hash for block in blocks}


@KINDS
async def test_tokens_logprobs_and_cached_counts_are_the_workers(
    is_vllm: bool, new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker = await new_worker(is_vllm=is_vllm)
    engine = new_remote(worker.url)
    await whole(engine)
    params = replace(GREEDY, logprobs=2)
    expected = await answer(worker.rank.generate(PROMPT, params))
    chunks = await all_of(engine.admit(new_request("a", PROMPT, params)))
    assert tokens(chunks) == tokens(expected)
    assert [each.logprobs for each in chunks] == [each.logprobs for each in expected]
    last = chunks[-1]
    assert (last.num_prompt_tokens, last.num_cached_tokens) == (21, 20)
    assert last.finish_reason == "length"


@pytest.mark.parametrize("incremental", [False, True])
async def test_streams_of_all_output_and_of_new_output_give_the_same(
    incremental: bool, new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker = await new_worker()
    worker.behaviour.incremental = incremental
    engine = new_remote(worker.url)
    await until_available(engine)
    chunks = await all_of(engine.admit(new_request("a", PROMPT, GREEDY, n=3)))
    assert {chunk.index for chunk in chunks} == {0, 1, 2}
    for index in range(3):
        own = [chunk for chunk in chunks if chunk.index == index]
        assert len(tokens(own)) == 10
        assert [chunk.finish_reason for chunk in own if chunk.finish_reason] == ["length"]


@KINDS
async def test_the_rank_publishes_what_the_worker_caches_in_our_chain(
    is_vllm: bool, new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker, recorded = await new_worker(is_vllm=is_vllm), Recorded()
    earlier = list(range(100, 120))
    await answer(worker.rank.generate(earlier, GREEDY))
    engine = new_remote(worker.url, recorded)
    await whole(engine)
    output = tokens(await all_of(engine.admit(new_request("a", PROMPT, GREEDY))))
    stored = names(PROMPT + output[:-1]) | names(earlier)
    await until(lambda: stored <= recorded.hashes, lambda: recorded.hashes)
    assert recorded.hashes == await content_of(engine) == await truth_of(worker)
    assert engine.num_cached_blocks == len(recorded.hashes)


async def test_workers_that_all_say_rank_0_are_told_apart_by_their_addresses(
    new_worker: NewWorker, new_remote: NewRemote
) -> None:
    contents = []
    for dp_rank in (1, 2):
        worker, recorded = await new_worker(is_vllm=True), Recorded()
        prompt = list(range(100 * dp_rank, 100 * dp_rank + 20))
        await answer(worker.rank.generate(prompt, GREEDY))
        engine = new_remote(worker.url, recorded, dp_rank=dp_rank)
        await whole(engine)
        await until(lambda: names(prompt) <= recorded.hashes, lambda: recorded.hashes)  # noqa: B023
        contents.append(recorded.hashes)
        assert engine.load.dp_rank == dp_rank
        followed = engine.status.foreign_events
        assert followed is not None
        assert (followed["state"], followed["bad_messages"]) == ("whole", 0)
        assert json.loads(json.dumps(followed))["relay"]["num_blocks"] == len(recorded.hashes)
    assert not contents[0] & contents[1]


async def test_salted_blocks_keep_apart(new_worker: NewWorker, new_remote: NewRemote) -> None:
    worker, recorded = await new_worker(), Recorded()
    engine = new_remote(worker.url, recorded)
    await whole(engine)
    await all_of(engine.admit(new_request("a", PROMPT, GREEDY, cache_salt="pepper")))
    await until(lambda: names(PROMPT, "pepper") <= recorded.hashes, lambda: recorded.hashes)
    assert not names(PROMPT) & recorded.hashes
    again = await all_of(engine.admit(new_request("b", PROMPT, GREEDY, cache_salt="pepper")))
    assert again[-1].num_cached_tokens == 20
    assert worker.bodies[0]["cache_salt"] == "pepper"


@KINDS
async def test_description_and_rank(is_vllm: bool, new_worker: NewWorker, new_remote: NewRemote) -> None:
    worker = await new_worker(is_vllm=is_vllm)
    engine = new_remote(worker.url, expected=Expected(1, frozenset(("tiny",)), 200))
    assert engine.status.unavailable is not None
    assert (engine.description.num_blocks, engine.description.max_model_len) == (0, 200)
    await until_available(engine)
    description = engine.description
    assert description.num_blocks == 64
    assert (description.max_model_len, description.max_prompt_tokens) == ((64, 63) if is_vllm else (200, 199))
    assert (description.device, description.dtype) == ("remote", "remote")
    assert description.kernels == ("vllm 0.32.0" if is_vllm else "sglang 0.5.23")
    assert engine.load.dp_rank == 3


async def test_an_aborted_request_ends_at_the_worker(new_worker: NewWorker, new_remote: NewRemote) -> None:
    worker, recorded = await new_worker(), Recorded()
    engine = new_remote(worker.url, recorded)
    await until_available(engine)
    admitted = engine.admit(new_request("a", PROMPT, replace(GREEDY, max_tokens=40)))
    first = await anext(admitted)
    assert isinstance(first, TokenChunk)
    admitted.abort()
    await all_of(admitted)
    await until(lambda: worker.aborted or worker.rank.thread.load.num_running_reqs == 0, "ended there")
    assert engine.load.num_running_reqs == 0


async def test_each_request_is_acknowledged_at_once_and_counted(
    new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker, recorded = await new_worker(), Recorded()
    engine = new_remote(worker.url, recorded)
    await whole(engine)
    admitted = engine.admit(new_request("a", PROMPT, GREEDY))
    stat, ids = recorded.loads[-1]
    assert ids == ("a",)
    assert (stat.num_waiting_reqs, stat.num_waiting_uncached_tokens) == (1, 21)
    await all_of(admitted)
    # Of the worker's own reports comes the rate, and its own figures stand once ours is counted there.
    await until(lambda: recorded.loads[-1][0].total_prefill_busy_us > 0, "a measured prefill rate")
    await until(lambda: recorded.loads[-1][0].num_waiting_reqs == 0, "nothing waits")
    refused = engine.admit(new_request("b", [], GREEDY))
    assert recorded.acknowledged == ["a", "b"]
    assert isinstance(await error_of(refused), InvalidRequestError)


async def test_a_cached_prompt_waits_for_less(new_worker: NewWorker, new_remote: NewRemote) -> None:
    worker, recorded = await new_worker(), Recorded()
    engine = new_remote(worker.url, recorded)
    await whole(engine)
    await all_of(engine.admit(new_request("a", PROMPT, GREEDY)))
    await until(lambda: names(PROMPT) <= recorded.hashes, "stored")
    engine.admit(new_request("b", PROMPT, GREEDY)).abort()
    stat, ids = next(each for each in reversed(recorded.loads) if each[1])
    assert (ids, stat.num_waiting_uncached_tokens) == (("b",), 1)


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"error": {"message": "top_k = -7", "param": "top_k"}}, InvalidRequestError),
        (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, PromptTooLongError),
        (429, {"error": {"message": "full"}}, QueueFullError),
        (500, {"detail": "broken"}, EngineFailedError),
        (503, {"error": {"message": "no rank"}}, EngineFailedError),
        (404, {"detail": "Not Found"}, EngineFailedError),
    ],
)
async def test_a_workers_refusal_becomes_ours(
    status: int, error: dict[str, object], expected: type, new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker = await new_worker()
    engine = new_remote(worker.url)
    await until_available(engine)
    worker.behaviour.status, worker.behaviour.error = status, error
    worker.behaviour.headers = {"retry-after": "7"}
    raised = await error_of(engine.admit(new_request("a", PROMPT, GREEDY)))
    assert type(raised) is expected
    if status == 400 and "param" in error.get("error", {}):  # type: ignore[operator]
        assert raised.param == "top_k"
    if isinstance(raised, QueueFullError):
        assert raised.retry_after_s == 7


@pytest.mark.parametrize("after", [0, 2])
async def test_a_broken_answer_is_the_engines_failure(
    after: int, new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker = await new_worker()
    engine = new_remote(worker.url)
    await until_available(engine)
    worker.behaviour.break_after = after
    admitted = engine.admit(new_request("a", PROMPT, GREEDY))
    for _ in range(after):
        assert isinstance(await anext(admitted), TokenChunk)
    with pytest.raises(EngineFailedError):
        await anext(admitted)


async def test_too_many_and_too_long_requests_are_refused(
    new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker = await new_worker()
    engine = new_remote(worker.url, max_requests=1)
    await until_available(engine)
    first = engine.admit(new_request("a", PROMPT, GREEDY))
    assert isinstance(await error_of(engine.admit(new_request("b", PROMPT, GREEDY))), QueueFullError)
    await all_of(first)
    raised = await error_of(engine.admit(new_request("c", [5] * 64, GREEDY)))
    assert isinstance(raised, PromptTooLongError)
    chunks = await all_of(engine.admit(new_request("d", [5] * 60, replace(GREEDY, max_tokens=2**60))))
    assert len(tokens(chunks)) == 4, "clipped to the context"


@KINDS
async def test_a_request_goes_on_from_earlier_output(
    is_vllm: bool, new_worker: NewWorker, new_remote: NewRemote
) -> None:
    worker = await new_worker(is_vllm=is_vllm)
    engine = new_remote(worker.url)
    await until_available(engine)
    output = tokens(await all_of(engine.admit(new_request("a", PROMPT, GREEDY))))
    earlier = {0: output[:4], 2: output[:7]}
    resumed = await all_of(engine.admit(new_request("b", PROMPT, GREEDY, n=3, earlier_outputs=earlier)))
    for index, given in earlier.items():
        own = [chunk for chunk in resumed if chunk.index == index]
        assert tokens(own) == output[len(given) :]
        assert {chunk.num_prompt_tokens for chunk in own} == {21}
    sampled = replace(GREEDY, temperature=1.0, seed=7)
    raised = await error_of(engine.admit(new_request("c", PROMPT, sampled, earlier_outputs={0: [5]})))
    assert "a request with seed can't go on" in raised.message
    raised = await error_of(engine.admit(new_request("d", PROMPT, GREEDY, earlier_outputs={1: [5]})))
    assert raised.param == "earlier_outputs"


async def test_stopping_fails_what_is_live(new_worker: NewWorker, new_remote: NewRemote) -> None:
    worker = await new_worker()
    engine = new_remote(worker.url)
    await until_available(engine)
    admitted = engine.admit(new_request("a", PROMPT, replace(GREEDY, max_tokens=40)))
    engine.stop()
    with pytest.raises(EngineFailedError):
        await all_of(admitted)
    for call in (engine.check_health, lambda: engine.admit(new_request("b", PROMPT, GREEDY))):
        with pytest.raises(EngineFailedError):
            call()
