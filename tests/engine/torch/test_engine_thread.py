"""The engine's thread with a real engine, through the methods of `RankEngine`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from app.engine.interface import RankEngine
from app.engine.torch.engine_thread import EngineThread
from app.errors import InvalidRequestError, QueueFullError
from app.events.schema import AllBlocksCleared, CacheEvent, LoadStat
from app.events.snapshot import CachedBlock
from app.generation import SamplingParams, StructuredOutput
from tests.support.engine.doubles import CHOICE, OneToken
from tests.support.engine.event_replay import EventReplay
from tests.support.engine.live_engine import LONG, SHORT, LiveEngine, all_of, error_of, tokens
from tests.support.engine.tiny_engine import BLOCK, tiny_engine

SCHEDULER = {"max_running_requests": 2, "max_waiting_requests": 3, "max_batch_tokens": 64}


class Recorder:
    """A listener that writes down what comes, and on which thread."""

    def __init__(self) -> None:
        self.events: list[CacheEvent] = []
        self.acknowledged: list[str] = []
        self.threads: set[str] = set()

    def publish(self, events: Sequence[CacheEvent], /) -> None:
        self.threads.add(threading.current_thread().name)
        self.events += events

    def publish_load(self, stat: LoadStat, acknowledged: Sequence[str], /) -> None:
        self.threads.add(threading.current_thread().name)
        self.acknowledged += acknowledged


@pytest.fixture
async def live(tiny_llama_dir: Path) -> AsyncIterator[LiveEngine]:
    """Publishes nothing."""
    thread = EngineThread(tiny_engine(tiny_llama_dir, scheduler=SCHEDULER), dp_rank=0)
    thread.start(None)
    yield LiveEngine(thread)
    thread.stop()


async def test_it_describes_itself(live: LiveEngine, tiny_llama_dir: Path) -> None:
    engine: RankEngine = live.thread
    about = engine.description
    assert (about.max_model_len, about.max_prompt_tokens, about.num_blocks) == (256, 255, 64)
    assert about.model_dir == str(tiny_llama_dir)
    assert (about.device, about.dtype) == ("cpu", "float32")
    assert about.kernels == await live.call(lambda inside: inside.kernels_name)


async def test_a_request_streams_to_its_end(live: LiveEngine) -> None:
    chunks = await all_of(live.admit())
    assert len(tokens(chunks)) == 3
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "length"]
    assert {(chunk.num_prompt_tokens, chunk.num_cached_tokens) for chunk in chunks} == {(5, 0)}
    assert (await all_of(live.admit()))[0].num_cached_tokens == 4


async def test_requests_at_once_get_their_own_tokens(live: LiveEngine) -> None:
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5], [1, 1, 1, 1]]
    alone = [tokens(await all_of(live.admit(prompt))) for prompt in prompts]
    together = await asyncio.gather(*(all_of(live.admit(prompt)) for prompt in prompts))
    assert [tokens(chunks) for chunks in together] == alone


async def test_an_abort_frees_the_blocks_and_ends_the_stream(live: LiveEngine) -> None:
    stream = live.admit(params=LONG, request_id="mine")
    await anext(stream)
    assert (await live.load())[0] == 1
    stream.abort()
    assert await live.load() == (0, 0, 0)
    await live.call(lambda engine: engine.check_integrity())
    assert len(await all_of(stream)) < 200
    stream.abort()
    assert len(await all_of(live.admit(request_id="mine"))) == 3


async def test_an_abort_ends_a_stream_that_is_waited_for(live: LiveEngine) -> None:
    running = [live.admit(params=LONG) for _ in range(2)]
    for stream in running:
        await anext(stream)
    stream = live.admit()
    waiting = asyncio.create_task(all_of(stream))
    await live.until_load(2, 1)
    stream.abort()
    assert await waiting == []


async def test_a_stream_that_is_only_left_goes_on_in_the_engine(live: LiveEngine) -> None:
    await anext(live.admit(params=LONG))
    assert (await live.load())[0] == 1
    await live.until_load(0, 0)


async def test_a_second_request_with_a_live_id_is_refused_and_the_first_goes_on(live: LiveEngine) -> None:
    stream = live.admit(params=LONG, request_id="mine")
    await anext(stream)
    second = live.admit(request_id="mine")
    error = await error_of(second)
    assert isinstance(error, InvalidRequestError)
    assert error.message == "request_id = 'mine': a live request has this id"
    second.abort()
    assert len(await all_of(stream)) == 199
    assert len(await all_of(live.admit(request_id="mine"))) == 3


async def test_aborting_a_request_that_has_ended_leaves_a_successor_with_its_id_alone(
    live: LiveEngine,
) -> None:
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    received = live.admit(params=params, request_id="received")
    (_,) = await all_of(received)
    ended = live.admit(params=params, request_id="mine")
    while live.thread.submit(lambda engine: engine.is_live("mine")).result():
        pass  # the event loop, blocked here, gets its chunk later
    successors = [live.admit(params=LONG, request_id=request_id) for request_id in ("mine", "received")]
    ended.abort()
    received.abort()
    async with asyncio.timeout(20):
        assert [len(await all_of(stream)) for stream in successors] == [200, 200]


async def test_chunks_of_an_aborted_request_do_not_reach_a_successor_with_its_id(live: LiveEngine) -> None:
    stream = live.admit(params=LONG, request_id="mine")
    await anext(stream)
    before = live.thread.submit(lambda engine: engine.load_stat(0).num_tokens).result()
    while live.thread.submit(lambda engine: engine.load_stat(0).num_tokens).result() == before:
        pass  # steps go on while the event loop, blocked here, delivers nothing
    stream.abort()
    (chunk,) = await all_of(live.admit([9, 9, 9, 9], SamplingParams(max_tokens=1), request_id="mine"))
    assert chunk.num_prompt_tokens == 4


async def test_samples_come_over_one_stream_and_the_last_one_ends_it(live: LiveEngine) -> None:
    params = SamplingParams(max_tokens=3, seed=1, ignore_eos=True)
    chunks = await all_of(live.admit(params=params, n=3))
    samples = [[chunk for chunk in chunks if chunk.index == index] for index in range(3)]
    assert [[chunk.finish_reason for chunk in sample] for sample in samples] == [[None, None, "length"]] * 3
    assert {(chunk.num_prompt_tokens, chunk.num_cached_tokens) for chunk in chunks} == {(5, 0)}
    assert len(chunks) == 9
    again = await all_of(live.admit(params=params, n=3))
    assert [tokens([chunk for chunk in again if chunk.index == index]) for index in range(3)] == [
        tokens(sample) for sample in samples
    ]
    assert await live.load() == (0, 0, 0)


@pytest.mark.parametrize("n", [0, -1, 5])
async def test_a_wrong_number_of_samples_is_refused(n: int, live: LiveEngine) -> None:
    assert "allowed: 1 to 3" in (await error_of(live.admit(n=n))).message


async def test_a_lower_priority_number_is_served_first(live: LiveEngine) -> None:
    running = [live.admit(params=LONG) for _ in range(2)]
    for stream in running:
        await anext(stream)
    finished = []

    async def answer(priority: int) -> None:
        await all_of(live.admit(priority=priority))
        finished.append(priority)

    async with asyncio.timeout(20):
        waiting = [asyncio.create_task(answer(priority)) for priority in (2, 0, 1)]
        await live.until_load(2, 3)
        running[0].abort()
        await asyncio.gather(*waiting)
        running[1].abort()
    assert finished == [0, 1, 2]


async def test_a_full_queue_refuses(live: LiveEngine) -> None:
    running = [live.admit(params=LONG) for _ in range(2)]
    for stream in running:
        await anext(stream)
    waiting = [asyncio.create_task(all_of(live.admit())) for _ in range(3)]
    await live.until_load(2, 3)
    assert isinstance(await error_of(live.admit()), QueueFullError)
    for stream in running:
        stream.abort()
    assert [len(chunks) for chunks in await asyncio.gather(*waiting)] == [3, 3, 3]


async def test_content_is_read_on_the_listeners_thread_after_all_events(tiny_llama_dir: Path) -> None:
    """The cache holds 16 blocks, so that it evicts; each content is compared with the events so far."""
    recorder = Recorder()
    thread = EngineThread(tiny_engine(tiny_llama_dir, num_blocks=16, scheduler=SCHEDULER), dp_rank=0)
    thread.start(recorder)
    live = LiveEngine(thread)
    replay, num_replayed = EventReplay(BLOCK), 0

    def read(blocks: Sequence[CachedBlock]) -> int:
        nonlocal num_replayed
        recorder.threads.add(threading.current_thread().name)
        replay.apply(recorder.events[num_replayed:])
        num_replayed = len(recorder.events)
        assert {block.hash: block.parent_hash for block in blocks} == replay.parent_of
        return len(blocks)

    work = [asyncio.create_task(all_of(live.admit(range(n, n + 40)))) for n in (10, 60, 110)]
    sizes = [await asyncio.wrap_future(thread.content(read)) for _ in range(10)]
    await asyncio.gather(*work)
    sizes.append(await asyncio.wrap_future(thread.content(read)))
    assert max(sizes) > 8
    await live.call(lambda engine: engine.reset_cache())
    assert await asyncio.wrap_future(thread.content(read)) == 0
    assert recorder.events[-1] == AllBlocksCleared()
    assert recorder.threads == {"engine-0"}
    assert recorder.acknowledged == ["r1", "r2", "r3"]
    thread.stop()


async def test_no_step_waits_for_a_grammar_to_compile(tiny_llama_dir: Path) -> None:
    may_compile = threading.Event()
    compiled: list[StructuredOutput] = []

    def slow_once(wanted: StructuredOutput) -> OneToken:
        if wanted not in compiled:
            assert may_compile.wait(10)
            compiled.append(wanted)
        return OneToken()

    thread = EngineThread(tiny_engine(tiny_llama_dir, new_grammar=slow_once), dp_rank=0)
    thread.start(None)
    live = LiveEngine(thread)
    params = SamplingParams(10, structured_output=CHOICE, logprobs=1)
    preparing = asyncio.create_task(thread.prepare(params))
    assert len(tokens(await all_of(live.admit(params=SHORT)))) == 3
    assert not preparing.done()
    may_compile.set()
    await preparing
    (chunk,) = await all_of(live.admit(params=params))
    assert (chunk.token_ids, chunk.finish_reason) == ([7], "stop")
    assert chunk.logprobs is not None
    assert len(chunk.logprobs[0].likeliest) == 1
    thread.stop()


async def test_a_grammar_that_does_not_compile_is_refused_when_it_is_prepared(tiny_llama_dir: Path) -> None:
    def refuse(wanted: StructuredOutput) -> OneToken:
        raise InvalidRequestError("not a choice", param=wanted.field)

    thread = EngineThread(tiny_engine(tiny_llama_dir, new_grammar=refuse), dp_rank=0)
    thread.start(None)
    with pytest.raises(InvalidRequestError, match="not a choice"):
        await thread.prepare(SamplingParams(10, structured_output=CHOICE))
    await thread.prepare(SHORT)
    thread.stop()
