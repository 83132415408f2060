"""The engine's thread with a real engine, a real publisher and a subscriber of the test's own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from safetensors.numpy import load_file, save_file

from app import hashing
from app.config import EngineConfig
from app.deployments.messages import RankMessage, Refusal
from app.deployments.rank.engine_thread import EngineThread
from app.engine.torch.engine import Engine
from app.errors import (
    EngineFailedError,
    InvalidRequestError,
    KvbeaconError,
    QueueFullError,
    RequestFailedError,
)
from app.events.batch_codec import decode_batch
from app.events.endpoints import KvEventsConfig
from app.events.following.recovery_client import RecoveryClient
from app.events.publishing.publisher import EventPublisher
from app.events.schema import BlockRemoved, BlockStored, EventBatch
from app.generation import GenerateRequest, SamplingParams, StructuredOutput, TokenChunk
from tests.support.free_ports import find_free_ports
from tests.support.snapshots import parents_in

CONFIG = {
    "cache": {"block_size": 4, "num_blocks": 64},
    "scheduler": {"max_running_requests": 2, "max_waiting_requests": 3, "max_batch_tokens": 64},
}
LONG = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)


class Rank:
    """An engine's thread and what it publishes."""

    def __init__(self, thread: EngineThread, publisher: EventPublisher | None) -> None:
        self.thread = thread
        self.publisher = publisher
        self._num_requests = 0

    def generate(
        self, prompt: Sequence[int] = (5, 6, 7, 8, 9), params: SamplingParams = SHORT, **fields: Any
    ) -> AsyncIterator[RankMessage]:
        self._num_requests += 1
        request_id = fields.pop("request_id", f"r{self._num_requests}")
        return self.thread.generate(GenerateRequest(request_id, list(prompt), params, **fields))

    async def load(self) -> tuple[int, int, int]:
        """Running, waiting, tokens held, as the engine counts them between two steps."""
        stat = await asyncio.wrap_future(self.thread.submit(lambda engine: engine.load_stat(0)))
        return stat.num_running_reqs, stat.num_waiting_reqs, stat.num_tokens

    async def until_load(self, running: int, waiting: int) -> None:
        deadline = time.monotonic() + 10
        while (await self.load())[:2] != (running, waiting):
            assert time.monotonic() < deadline, await self.load()

    def port(self, name: str) -> int:
        assert self.publisher is not None
        port: int = msgspec.to_builtins(self.publisher.info("127.0.0.1"))[name]
        return port


@pytest.fixture
async def new_rank(tiny_llama_dir: Path) -> AsyncIterator[Callable[..., Rank]]:
    ranks: list[Rank] = []

    def make(
        publisher: EventPublisher | None = None, model_dir: Path = tiny_llama_dir, **options: Any
    ) -> Rank:
        config = EngineConfig.model_validate(CONFIG)
        engine = Engine.load(model_dir, config, device="cpu", dtype="float32", **options)
        rank = Rank(EngineThread(engine, publisher, dp_rank=0), publisher)
        rank.thread.start()
        ranks.append(rank)
        return rank

    yield make
    for rank in ranks:
        rank.thread.stop()
        if rank.publisher is not None:
            rank.publisher.close()


@pytest.fixture
async def rank(new_rank: Callable[..., Rank]) -> Rank:
    """Publishes nothing."""
    return new_rank()


@pytest.fixture
async def publishing_rank(new_rank: Callable[..., Rank]) -> Rank:
    base = find_free_ports(3)
    config = KvEventsConfig(
        publisher="zmq",
        endpoint=f"tcp://127.0.0.1:{base}",
        replay_endpoint=f"tcp://127.0.0.1:{base + 2}",
    )
    publisher = EventPublisher(config, dp_rank=0, dp_size=1, block_size=4)
    publisher.start()
    return new_rank(publisher)


async def all_of(stream: AsyncIterator[RankMessage]) -> list[TokenChunk]:
    """The chunks of a stream that isn't refused."""
    messages = [message async for message in stream]
    chunks = [message for message in messages if isinstance(message, TokenChunk)]
    assert len(chunks) == len(messages), messages
    return chunks


def tokens(chunks: Sequence[TokenChunk]) -> list[int]:
    return [token_id for chunk in chunks for token_id in chunk.token_ids]


async def refusal(stream: AsyncIterator[RankMessage]) -> Refusal:
    """The only message of a stream that is refused."""
    (message,) = [message async for message in stream]
    assert isinstance(message, Refusal)
    return message


async def test_a_request_streams_to_its_end(rank: Rank) -> None:
    chunks = await all_of(rank.generate())
    assert len(tokens(chunks)) == 3
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "length"]
    assert {(chunk.num_prompt_tokens, chunk.num_cached_tokens) for chunk in chunks} == {(5, 0)}
    assert (await all_of(rank.generate()))[0].num_cached_tokens == 4


async def test_requests_at_once_get_their_own_tokens(rank: Rank) -> None:
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5], [1, 1, 1, 1]]
    alone = [tokens(await all_of(rank.generate(prompt))) for prompt in prompts]
    together = await asyncio.gather(*(all_of(rank.generate(prompt)) for prompt in prompts))
    assert [tokens(chunks) for chunks in together] == alone


async def test_leaving_a_stream_aborts_the_request_and_frees_its_blocks(rank: Rank) -> None:
    stream = rank.generate(params=LONG)
    await anext(stream)
    running, _, num_tokens = await rank.load()
    assert running == 1
    assert num_tokens > 0
    await stream.aclose()
    assert await rank.load() == (0, 0, 0)
    await asyncio.wrap_future(rank.thread.submit(lambda engine: engine.check_integrity()))


async def test_cancelling_a_request_that_waits_takes_it_out_of_the_queue(rank: Rank) -> None:
    running = [rank.generate(params=LONG) for _ in range(2)]
    for stream in running:
        await anext(stream)
    waiting = asyncio.create_task(anext(rank.generate()))
    await rank.until_load(2, 1)
    waiting.cancel()
    await asyncio.wait([waiting])
    await rank.until_load(2, 0)
    for stream in running:
        await stream.aclose()
    assert await rank.load() == (0, 0, 0)


async def test_a_refusal_comes_alone_and_leaves_the_others_alone(rank: Rank) -> None:
    stream = rank.generate(params=LONG)
    await anext(stream)
    refused = await refusal(rank.generate([512]))
    assert isinstance(refused.error, InvalidRequestError)
    assert "511" in refused.error.message
    assert len(await all_of(stream)) > 100


async def test_samples_come_over_one_stream_and_the_last_one_ends_it(rank: Rank) -> None:
    params = SamplingParams(max_tokens=3, seed=1, ignore_eos=True)
    chunks = await all_of(rank.generate(params=params, n=3))
    samples = [[chunk for chunk in chunks if chunk.index == index] for index in range(3)]
    assert [[chunk.finish_reason for chunk in sample] for sample in samples] == [[None, None, "length"]] * 3
    assert {(chunk.num_prompt_tokens, chunk.num_cached_tokens) for chunk in chunks} == {(5, 0)}
    assert len(chunks) == 9
    again = await all_of(rank.generate(params=params, n=3))
    assert [tokens([chunk for chunk in again if chunk.index == index]) for index in range(3)] == [
        tokens(sample) for sample in samples
    ]
    assert await rank.load() == (0, 0, 0)


async def test_leaving_a_stream_when_some_samples_have_ended_aborts_the_others(rank: Rank) -> None:
    stream = rank.generate(params=LONG, n=3)
    async for message in stream:
        assert isinstance(message, TokenChunk)
        if message.finish_reason is not None:
            break
    assert (await rank.load())[0] > 0
    await stream.aclose()
    assert await rank.load() == (0, 0, 0)


@pytest.mark.parametrize("n", [0, -1, 5])
async def test_a_wrong_number_of_samples_is_refused(n: int, rank: Rank) -> None:
    refused = await refusal(rank.generate(n=n))
    assert "allowed: 1 to 3" in refused.error.message


async def test_a_sample_that_fails_ends_the_request_and_its_other_samples(
    new_tiny_llama: Callable[..., Path], new_rank: Callable[..., Rank]
) -> None:
    model_dir = new_tiny_llama()
    weights = load_file(model_dir / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, model_dir / "model.safetensors")
    rank = new_rank(model_dir=model_dir)
    refused = await refusal(rank.generate(params=LONG, n=3))
    assert "logits are not finite" in refused.error.message
    assert await rank.load() == (0, 0, 0)


async def test_a_lower_priority_number_is_served_first(rank: Rank) -> None:
    running = [rank.generate(params=LONG) for _ in range(2)]
    for stream in running:
        await anext(stream)
    finished = []

    async def answer(priority: int) -> None:
        await all_of(rank.generate(priority=priority))
        finished.append(priority)

    async with asyncio.timeout(20):
        waiting = [asyncio.create_task(answer(priority)) for priority in (2, 0, 1)]
        await rank.until_load(2, 3)
        await running[0].aclose()
        await asyncio.gather(*waiting)
        await running[1].aclose()
    assert finished == [0, 1, 2]


async def test_a_full_queue_refuses(rank: Rank) -> None:
    running = [rank.generate(params=LONG) for _ in range(2)]
    for stream in running:
        await anext(stream)
    waiting = [asyncio.create_task(all_of(rank.generate())) for _ in range(3)]
    await rank.until_load(2, 3)
    assert isinstance((await refusal(rank.generate())).error, QueueFullError)
    for stream in running:
        await stream.aclose()
    assert [len(chunks) for chunks in await asyncio.gather(*waiting)] == [3, 3, 3]


async def test_the_snapshot_is_what_the_replayed_events_amount_to(publishing_rank: Rank) -> None:
    """64 blocks of 4 tokens, and prompts of 40 blocks: everything is evicted, again and again."""
    rank = publishing_rank
    work = [asyncio.create_task(all_of(rank.generate(range(n, n + 160)))) for n in (10, 60, 110)]
    during = [await rank.thread.snapshot() for _ in range(20)]
    await asyncio.gather(*work)
    for n in (160, 210, 260):
        await all_of(rank.generate(range(n, n + 160)))
    snapshots = [*during, await rank.thread.snapshot()]
    batches = await replayed(rank, snapshots[-1].seq)
    states = states_after(batches)
    assert any(isinstance(event, BlockRemoved) for batch in batches for event in batch.events)
    assert len({snapshot.seq for snapshot in snapshots}) > 1
    for snapshot in snapshots:
        assert set(parents_in(snapshot)) == states[snapshot.seq]
        assert rank.publisher is not None
        assert snapshot.epoch == rank.publisher.epoch
    assert len(parents_in(snapshots[-1])) == rank.thread.num_cached_blocks


async def test_events_name_the_prompts_blocks(publishing_rank: Rank) -> None:
    await all_of(publishing_rank.generate([5, 6, 7, 8, 9], cache_salt="tenant"))
    snapshot = await publishing_rank.thread.snapshot()
    (digest,) = hashing.chain([5, 6, 7, 8], 4, hashing.seed("tenant"))
    assert hashing.wire_hash(digest) in parents_in(snapshot)


async def replayed(rank: Rank, last: int) -> list[EventBatch]:
    """The batches up to `last`, once the publisher's own thread has put them into its buffer."""
    assert rank.publisher is not None
    async with asyncio.timeout(10):
        while rank.publisher.counters.published_batches <= last:
            await asyncio.sleep(0.005)
    batches: list[EventBatch] = []
    with zmq.asyncio.Context() as context:
        client = RecoveryClient(context, f"tcp://127.0.0.1:{rank.port('replay_port')}")
        await client.replay(0, lambda seq, payload: batches.append(decode_batch(payload)))
        client.close()
    return batches[: last + 1]


def states_after(batches: Sequence[EventBatch]) -> list[set[int]]:
    """The block set after each batch."""
    states = []
    blocks: set[int] = set()
    for batch in batches:
        for event in batch.events:
            match event:
                case BlockStored():
                    blocks = blocks | set(event.block_hashes)
                case BlockRemoved():
                    assert set(event.block_hashes) <= blocks
                    blocks = blocks - set(event.block_hashes)
                case _:
                    blocks = set()
        states.append(blocks)
    return states


async def test_a_reset_between_steps_is_published(publishing_rank: Rank) -> None:
    await all_of(publishing_rank.generate())
    before = await publishing_rank.thread.snapshot()
    assert parents_in(before)
    await asyncio.wrap_future(publishing_rank.thread.submit(lambda engine: engine.reset_cache()))
    after = await publishing_rank.thread.snapshot()
    assert after.seq == before.seq + 1
    assert parents_in(after) == {}
    *_, full, empty = states_after(await replayed(publishing_rank, after.seq))
    assert full == set(parents_in(before))
    assert empty == set()


class Listener:
    """A SUB socket at the load port: everything it says, in order."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket

    async def next(self, topic: bytes) -> list[Any]:
        """The payload of the next message under `topic`."""
        async with asyncio.timeout(10):
            while True:
                heard, _, payload = await self._socket.recv_multipart()
                if heard == topic:
                    message: list[Any] = msgspec.msgpack.decode(payload)
                    return message


@pytest.fixture
async def listener(publishing_rank: Rank) -> AsyncIterator[Listener]:
    """Connected: it has heard a first heartbeat."""
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe(b"")
        socket.connect(f"tcp://127.0.0.1:{publishing_rank.port('load_port')}")
        listener = Listener(socket)
        await listener.next(b"load")
        yield listener


async def test_an_idle_rank_reports_its_load_once_a_second(listener: Listener) -> None:
    started = time.monotonic()
    reports = [await listener.next(b"load") for _ in range(2)]
    assert 0.5 < time.monotonic() - started < 5
    assert [report[:4] for report in reports] == [["LoadStat", 0, 0, 0]] * 2


async def test_an_admission_is_reported_at_once_and_acknowledged(
    publishing_rank: Rank, listener: Listener
) -> None:
    stream = publishing_rank.generate(params=LONG, request_id="mine")
    await anext(stream)
    report = await listener.next(b"load")
    assert report[1] + report[2] == 1, "running or waiting"
    assert await listener.next(b"ack") == [0, ["mine"]]
    await stream.aclose()
    while (report := await listener.next(b"load"))[1:4] != [0, 0, 0]:
        pass
    assert report[9] == 5, "prompt tokens computed"
    assert report[10] > 0, "microseconds spent on them"


async def test_a_refused_request_is_acknowledged_too(publishing_rank: Rank, listener: Listener) -> None:
    await refusal(publishing_rank.generate([512], request_id="refused"))
    assert await listener.next(b"ack") == [0, ["refused"]]


async def test_without_a_publisher_there_is_no_snapshot(rank: Rank) -> None:
    with pytest.raises(KvbeaconError, match="publishes no events"):
        await rank.thread.snapshot()


async def test_what_a_call_raises_is_the_callers(rank: Rank) -> None:
    with pytest.raises(ZeroDivisionError):
        await asyncio.wrap_future(rank.thread.submit(lambda engine: 1 // 0))
    rank.thread.check_health()
    assert len(await all_of(rank.generate())) == 3


CHOICE = StructuredOutput("choice", '["a"]', "structured_outputs.choice")


class OneToken:
    """A grammar that lets token 7 through and is finished."""

    def __init__(self) -> None:
        self.is_finished = False

    def allowed_tokens(self) -> bytes:
        return bytes(token_id == 7 for token_id in range(512))

    def accept(self, token_id: int) -> None:
        self.is_finished = True


async def test_no_step_waits_for_a_grammar_to_compile(new_rank: Callable[..., Rank]) -> None:
    may_compile = threading.Event()
    compiled: list[StructuredOutput] = []

    def slow_once(wanted: StructuredOutput) -> OneToken:
        if wanted not in compiled:
            assert may_compile.wait(10)
            compiled.append(wanted)
        return OneToken()

    rank = new_rank(new_grammar=slow_once)
    structured = asyncio.create_task(
        all_of(rank.generate(params=SamplingParams(10, structured_output=CHOICE, logprobs=1)))
    )
    assert len(tokens(await all_of(rank.generate(params=SHORT)))) == 3
    assert not structured.done()
    may_compile.set()
    (chunk,) = await structured
    assert (chunk.token_ids, chunk.finish_reason) == ([7], "stop")
    assert chunk.logprobs is not None
    assert len(chunk.logprobs[0].likeliest) == 1


async def test_a_grammar_that_does_not_compile_refuses_the_request_only(
    new_rank: Callable[..., Rank],
) -> None:
    def refuse(wanted: StructuredOutput) -> OneToken:
        raise InvalidRequestError("not a choice", param=wanted.field)

    rank = new_rank(new_grammar=refuse)
    refused = await refusal(rank.generate(params=SamplingParams(10, structured_output=CHOICE)))
    assert (refused.error.status, refused.error.param) == (400, "structured_outputs.choice")
    assert len(tokens(await all_of(rank.generate(params=SHORT)))) == 3


async def test_what_no_output_can_become_is_an_error_and_not_the_end_of_the_rank(
    new_rank: Callable[..., Rank],
) -> None:
    rank = new_rank(new_grammar=lambda wanted: OneToken())
    params = SamplingParams(10, structured_output=CHOICE, min_tokens=1, stop_token_ids=(7,))
    refused = await refusal(rank.generate(params=params))
    assert isinstance(refused.error, RequestFailedError)
    assert "no token may follow" in refused.error.message
    assert len(tokens(await all_of(rank.generate(params=SHORT)))) == 3


class BrokenText:
    """A detokeniser that fails on a request's second token."""

    def __init__(self) -> None:
        self.matched: str | None = None
        self._num_tokens = 0

    def push(self, token_id: int) -> str:
        self._num_tokens += 1
        if self._num_tokens == 2:
            raise RuntimeError("no such character")
        return ""


async def test_an_engine_that_breaks_in_a_step_ends_every_stream_and_the_ranks_health(
    new_rank: Callable[..., Rank],
) -> None:
    rank = new_rank(new_text_stream=lambda stop, min_tokens: BrokenText())
    innocent = rank.generate(params=LONG)
    await anext(innocent)
    guilty = rank.generate(params=SamplingParams(max_tokens=50, temperature=0, ignore_eos=True, stop=("x",)))
    waiting = rank.generate(params=LONG)
    call = asyncio.create_task(never_ending_calls(rank))
    errors = await asyncio.gather(*map(refused_at_last, [innocent, guilty, waiting]))
    assert all("its log says why" in error.message for error in errors)
    with pytest.raises(EngineFailedError):
        await call
    with pytest.raises(EngineFailedError):
        rank.thread.check_health()
    late = await refusal(rank.generate())
    assert isinstance(late.error, EngineFailedError)


async def refused_at_last(stream: AsyncIterator[RankMessage]) -> EngineFailedError:
    async with asyncio.timeout(10):
        messages = [message async for message in stream]
    assert isinstance(messages[-1], Refusal), messages[-1]
    assert isinstance(messages[-1].error, EngineFailedError)
    return messages[-1].error


async def never_ending_calls(rank: Rank) -> None:
    async with asyncio.timeout(10):
        while True:
            await rank.load()


async def test_stopping_leaves_nobody_waiting(rank: Rank) -> None:
    stream = rank.generate(params=LONG)
    await anext(stream)
    call = asyncio.create_task(never_ending_calls(rank))
    await asyncio.sleep(0)  # the call is in the inbox
    await asyncio.to_thread(rank.thread.stop)
    await refused_at_last(stream)
    with pytest.raises(EngineFailedError):
        await call
    late = await refusal(rank.generate())
    assert isinstance(late.error, EngineFailedError)


async def test_stopping_twice(rank: Rank) -> None:
    await all_of(rank.generate())
    rank.thread.stop()
    rank.thread.stop()
    with pytest.raises(EngineFailedError):
        rank.thread.check_health()
