"""A rank without Ray: what it answers, and what becomes of requests whose consumer leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from app.deployments.messages import Refusal
from app.errors import EngineFailedError, InvalidRequestError, KvbeaconError
from app.generation import SamplingParams, StructuredOutput, TokenChunk
from tests.support.engine.doubles import CHOICE, OneToken
from tests.support.engine.live_engine import LONG, SHORT, tokens
from tests.support.engine.live_rank import LiveRank, answer, refusal
from tests.support.engine.tiny_engine import tiny_engine

SCHEDULER = {"max_running_requests": 2, "max_waiting_requests": 3, "max_batch_tokens": 64}
NewRank = Callable[..., LiveRank]


@pytest.fixture
async def new_rank(tiny_llama_dir: Path) -> AsyncIterator[NewRank]:
    """Makes ranks that publish nothing."""
    ranks: list[LiveRank] = []

    def make(model_dir: Path = tiny_llama_dir, **options: Any) -> LiveRank:
        ranks.append(LiveRank(tiny_engine(model_dir, scheduler=SCHEDULER, **options)))
        return ranks[-1]

    yield make
    for rank in ranks:
        rank.stop()


@pytest.fixture
async def rank(new_rank: NewRank) -> LiveRank:
    return new_rank()


async def test_a_request_streams_to_its_end(rank: LiveRank) -> None:
    chunks = await answer(rank.generate())
    assert len(tokens(chunks)) == 3
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "length"]


async def test_leaving_a_stream_aborts_the_request_and_frees_its_blocks(rank: LiveRank) -> None:
    stream = rank.generate(params=LONG)
    await anext(stream)
    running, _, num_tokens = await rank.load()
    assert running == 1
    assert num_tokens > 0
    await stream.aclose()
    assert await rank.load() == (0, 0, 0)
    await rank.call(lambda engine: engine.check_integrity())


async def test_cancelling_a_request_that_waits_takes_it_out_of_the_queue(rank: LiveRank) -> None:
    running = [rank.generate(params=LONG) for _ in range(2)]
    for stream in running:
        await anext(stream)
    waiting = asyncio.create_task(answer(rank.generate()))
    await rank.until_load(2, 1)
    waiting.cancel()
    await asyncio.wait([waiting])
    await rank.until_load(2, 0)
    for stream in running:
        await stream.aclose()
    assert await rank.load() == (0, 0, 0)


async def test_leaving_a_stream_when_some_samples_have_ended_aborts_the_others(rank: LiveRank) -> None:
    stream = rank.generate(params=LONG, n=3)
    async for message in stream:
        assert isinstance(message, TokenChunk)
        if message.finish_reason is not None:
            break
    assert (await rank.load())[0] > 0
    await stream.aclose()
    assert await rank.load() == (0, 0, 0)


async def test_a_refusal_comes_alone_and_leaves_the_others_alone(rank: LiveRank) -> None:
    stream = rank.generate(params=LONG)
    await anext(stream)
    refused = await refusal(rank.generate([512]))
    assert isinstance(refused.error, InvalidRequestError)
    assert "511" in refused.error.message
    assert len(await answer(stream)) > 100


async def test_a_refused_request_with_a_live_id_does_not_abort_the_live_one(rank: LiveRank) -> None:
    stream = rank.generate(params=LONG, request_id="mine")
    await anext(stream)
    assert "a live request has this id" in (await refusal(rank.generate(request_id="mine"))).error.message
    assert len(await answer(stream)) == 199


async def test_cancelling_a_request_whose_grammar_compiles_leaves_a_live_one_with_its_id_alone(
    new_rank: NewRank,
) -> None:
    compiling, may_compile = threading.Event(), threading.Event()

    def slow(wanted: StructuredOutput) -> OneToken:
        compiling.set()
        assert may_compile.wait(10)
        return OneToken()

    rank = new_rank(new_grammar=slow)
    stream = rank.generate(params=LONG, request_id="mine")
    await anext(stream)
    params = SamplingParams(10, structured_output=CHOICE)
    second = asyncio.create_task(answer(rank.generate(params=params, request_id="mine")))
    await asyncio.to_thread(compiling.wait, 10)
    second.cancel()
    await asyncio.wait([second])
    may_compile.set()
    assert len(await answer(stream)) == 199


async def test_leaving_after_the_last_chunk_leaves_a_successor_with_the_same_id_alone(rank: LiveRank) -> None:
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    stream = rank.generate(params=params, request_id="mine")
    await anext(stream)
    successor = rank.generate(params=LONG, request_id="mine")
    await anext(successor)
    await stream.aclose()
    assert len(await answer(successor)) == 199


async def test_a_sample_that_fails_is_a_refusal_that_ends_the_request(
    new_tiny_llama: Callable[..., Path], new_rank: NewRank
) -> None:
    model_dir = new_tiny_llama()
    weights = load_file(model_dir / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, model_dir / "model.safetensors")
    rank = new_rank(model_dir)
    refused = await refusal(rank.generate(params=LONG, n=3))
    assert "logits are not finite" in refused.error.message
    assert await rank.load() == (0, 0, 0)


async def test_a_request_waits_for_its_grammar_to_compile_and_no_other_does(new_rank: NewRank) -> None:
    may_compile = threading.Event()
    compiled: list[StructuredOutput] = []

    def slow_once(wanted: StructuredOutput) -> OneToken:
        if wanted not in compiled:
            assert may_compile.wait(10)
            compiled.append(wanted)
        return OneToken()

    rank = new_rank(new_grammar=slow_once)
    structured = asyncio.create_task(
        answer(rank.generate(params=SamplingParams(10, structured_output=CHOICE)))
    )
    assert len(tokens(await answer(rank.generate(params=SHORT)))) == 3
    assert not structured.done()
    may_compile.set()
    (chunk,) = await structured
    assert (chunk.token_ids, chunk.finish_reason) == ([7], "stop")


async def test_a_grammar_that_does_not_compile_refuses_the_request_only(new_rank: NewRank) -> None:
    def refuse(wanted: StructuredOutput) -> OneToken:
        raise InvalidRequestError("not a choice", param=wanted.field)

    rank = new_rank(new_grammar=refuse)
    refused = await refusal(rank.generate(params=SamplingParams(10, structured_output=CHOICE)))
    assert (refused.error.status, refused.error.param) == (400, "structured_outputs.choice")
    assert len(tokens(await answer(rank.generate(params=SHORT)))) == 3


async def test_a_stopped_engine_refuses_what_is_live_and_what_comes(rank: LiveRank) -> None:
    stream = rank.generate(params=LONG)
    await anext(stream)
    await asyncio.to_thread(rank.stop)
    async with asyncio.timeout(10):
        *_, last = [message async for message in stream]
    assert isinstance(last, Refusal)
    assert isinstance(last.error, EngineFailedError)
    assert isinstance((await refusal(rank.generate())).error, EngineFailedError)


async def test_without_a_publisher_there_is_no_snapshot(rank: LiveRank) -> None:
    with pytest.raises(KvbeaconError, match="rank 0 publishes no events"):
        await rank.core.snapshot()
