"""The rank's side of vLLM, over a core that does what a test says. The real one is in tests/vllm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

import pytest

from app.engine.interface import EngineDescription
from app.engine.limits import Limits
from app.engine.vllm.admission import Admission, VllmSample
from app.engine.vllm.engine import VllmEngine
from app.engine.vllm.load_meter import LoadMeter, StepStats
from app.engine.vllm.outputs import VllmOutput
from app.errors import EngineFailedError, InvalidRequestError, QueueFullError, RequestFailedError
from app.events.schema import CacheEvent, LoadStat
from app.generation import GenerateRequest, SamplingParams, StructuredOutput
from app.text.text_stream import TextStream
from tests.support.deadlines import until

MAX_WAITING = 3
PARAMS = SamplingParams(max_tokens=4, temperature=0)


class ScriptedCore:
    """Gives each sample what the test puts for it, or refuses it; remembers what was closed."""

    def __init__(self) -> None:
        self.on_step: Callable[[StepStats], None] = lambda stats: None
        self.has_died = False
        self.num_shutdowns = 0
        self.running: dict[str, asyncio.Queue[VllmOutput | Exception]] = {}
        self.asked: list[tuple[str, str | None, int]] = []
        self.refused: set[str] = set()
        self.num_probes = 0
        self.is_still = False

    async def generate(
        self, sample: VllmSample, cache_salt: str | None, priority: int
    ) -> AsyncGenerator[VllmOutput]:
        self.asked.append((sample.request_id, cache_salt, priority))
        if sample.request_id in self.refused:
            raise InvalidRequestError("not this one")
        outputs = self.running[sample.request_id] = asyncio.Queue()
        try:
            while True:
                output = await outputs.get()
                if isinstance(output, Exception):
                    raise output
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            del self.running[sample.request_id]

    def put(self, name: str, token: int, finish_reason: str | None = None) -> None:
        self.running[name].put_nowait(VllmOutput([token], None, finish_reason, 0))

    async def reset_prefix_cache(self) -> bool:
        return not self.running

    async def step_once(self) -> None:
        self.num_probes += 1
        while self.is_still:
            await asyncio.sleep(0.01)

    def shutdown(self) -> None:
        self.num_shutdowns += 1


class Listener:
    """Keeps load reports."""

    def __init__(self) -> None:
        self.loads: list[LoadStat] = []
        self.acknowledged: list[str] = []

    def publish(self, events: Sequence[CacheEvent]) -> None:
        raise AssertionError("nothing is followed here")

    def publish_load(self, stat: LoadStat, acknowledged: Sequence[str]) -> None:
        self.loads.append(stat)
        self.acknowledged += acknowledged


class Rank:
    """An engine over a scripted core."""

    def __init__(self, stall_timeout_s: float = 10.0) -> None:
        self.core, self.listener = ScriptedCore(), Listener()
        limits = Limits(max_model_len=100, num_blocks=10, block_size=16, vocab_size=1000)
        self.engine = VllmEngine(
            self.core,
            EngineDescription("/m", 100, 99, 10, "cpu", "float32", "vllm"),
            7,
            admission=Admission(limits, (2,), letters),
            meter=LoadMeter(7, 160, 2),
            publisher=None,
            block_size=16,
            max_waiting=MAX_WAITING,
            check_structure=refuse,
            stall_timeout_s=stall_timeout_s,
        )
        self.engine.start(self.listener)

    def request(self, name: str, params: SamplingParams = PARAMS, n: int = 1) -> GenerateRequest:
        return GenerateRequest(name, [5] * 20, params, n=n, priority=1, cache_salt="salt")

    async def until_running(self, *names: str) -> None:
        await until(lambda: set(names) == self.core.running.keys(), f"running: {names}")


def letters(stop: Sequence[str], min_tokens: int, skip_special_tokens: bool) -> TextStream:
    return TextStream(lambda ids: "".join(map(chr, ids)), lambda token: False, stop, min_tokens)


def refuse(structure: StructuredOutput) -> None:
    raise InvalidRequestError("it doesn't compile", param=structure.field)


@pytest.fixture
async def rank() -> AsyncIterator[Rank]:
    rank = Rank()
    yield rank
    rank.engine.stop()


async def test_a_request_is_acknowledged_at_once_and_idleness_reported_at_once(rank: Rank) -> None:
    stream = rank.engine.admit(rank.request("a"))
    await rank.until_running("a-0")
    assert rank.core.asked == [("a-0", "salt", 1)]
    await until(lambda: rank.listener.acknowledged == ["a"], "the acknowledgement")
    assert (rank.engine.load.num_waiting_reqs, rank.engine.load.num_waiting_uncached_tokens) == (1, 20)
    rank.core.put("a-0", 6)
    rank.core.put("a-0", 2, "stop")
    assert [(chunk.token_ids, chunk.finish_reason) async for chunk in stream] == [([6], None), ([2], "stop")]
    await until(lambda: rank.engine.load.num_waiting_reqs + rank.engine.load.num_running_reqs == 0, "idle")


async def test_load_is_reported_every_few_steps(rank: Rank) -> None:
    rank.engine.admit(rank.request("a"))
    await rank.until_running("a-0")
    count = len(rank.listener.loads)
    for _ in range(8):
        rank.core.on_step(StepStats(1, 0.5))
    assert len(rank.listener.loads) == count + 2
    assert (rank.engine.load.num_running_reqs, rank.engine.load.num_tokens) == (1, 80)


async def test_an_abort_closes_what_computes_every_sample(rank: Rank) -> None:
    stream = rank.engine.admit(rank.request("a", n=2))
    await rank.until_running("a-0", "a-1")
    rank.core.put("a-1", 6)
    assert (await anext(stream)).index == 1
    stream.abort()
    stream.abort()
    assert [chunk async for chunk in stream] == []
    await rank.until_running()
    # Another request with its id has nothing to do with it.
    again = rank.engine.admit(rank.request("a"))
    await rank.until_running("a-0")
    stream.abort()
    rank.core.put("a-0", 2, "stop")
    assert len([chunk async for chunk in again]) == 1


async def test_the_error_of_one_sample_ends_the_others(rank: Rank) -> None:
    stream = rank.engine.admit(rank.request("a", n=2))
    await rank.until_running("a-0", "a-1")
    rank.core.running["a-1"].put_nowait(RequestFailedError("broken"))
    with pytest.raises(RequestFailedError, match="broken"):
        await anext(stream)
    await rank.until_running()


async def test_an_unexpected_error_is_the_requests_alone(rank: Rank) -> None:
    stream = rank.engine.admit(rank.request("a"))
    await rank.until_running("a-0")
    rank.core.running["a-0"].put_nowait(ZeroDivisionError())
    with pytest.raises(RequestFailedError, match="log says why"):
        await anext(stream)
    rank.engine.check_health()


async def test_a_stop_string_ends_the_sample_in_vllm_too(rank: Rank) -> None:
    params = SamplingParams(max_tokens=9, temperature=0, stop=("bc",))
    stream = rank.engine.admit(rank.request("a", params))
    await rank.until_running("a-0")
    for token in b"abcd":
        rank.core.put("a-0", token)
    chunks = [chunk async for chunk in stream]
    assert ([token for chunk in chunks for token in chunk.token_ids], chunks[-1].finish_reason) == (
        list(b"abc"),
        "stop",
    )
    await rank.until_running()


async def test_a_full_queue_and_too_many_samples_are_refused_and_acknowledged(rank: Rank) -> None:
    for number in range(MAX_WAITING):
        rank.engine.admit(rank.request(f"w{number}"))
    with pytest.raises(QueueFullError, match="3 requests wait; at most 3 may") as refusal:
        await anext(rank.engine.admit(rank.request("late")))
    assert 1 <= (refusal.value.retry_after_s or 0) <= 60
    with pytest.raises(InvalidRequestError, match="n = 4; allowed: 1 to 3"):
        await anext(rank.engine.admit(rank.request("many", n=4)))
    await until(lambda: {"late", "many"} <= set(rank.listener.acknowledged), "both acknowledged")


async def test_a_structure_that_doesnt_compile_is_refused_before_admission(rank: Rank) -> None:
    structure = StructuredOutput("regex", "[", "structured_outputs.regex")
    with pytest.raises(InvalidRequestError, match="it doesn't compile"):
        await rank.engine.prepare(SamplingParams(1, structured_output=structure))
    await rank.engine.prepare(PARAMS)


async def test_when_vllm_dies_all_fail_and_nothing_is_admitted(rank: Rank) -> None:
    streams = [rank.engine.admit(rank.request(name)) for name in ("a", "b")]
    await rank.until_running("a-0", "b-0")
    rank.core.put("a-0", 6)
    await anext(streams[0])
    rank.core.has_died = True
    for stream in streams:
        with pytest.raises(EngineFailedError, match="the engine of rank 7 has stopped"):
            await anext(stream)
    for call in (
        rank.engine.check_health,
        lambda: rank.engine.admit(rank.request("c")),
        lambda: rank.engine.content(len),
    ):
        with pytest.raises(EngineFailedError):
            call()
    with pytest.raises(EngineFailedError):
        await rank.engine.reset_cache()


async def test_stopping_fails_what_is_live_and_ends_vllm(rank: Rank) -> None:
    stream = rank.engine.admit(rank.request("a"))
    await rank.until_running("a-0")
    rank.engine.stop()
    with pytest.raises(EngineFailedError):
        await anext(stream)
    assert rank.core.num_shutdowns == 1


async def test_without_events_nothing_is_held_and_a_reset_is_vllms_word(rank: Rank) -> None:
    assert rank.engine.content(list).result() == []
    assert rank.engine.num_cached_blocks == 0
    assert rank.engine.status.partial_cache is None
    assert await rank.engine.reset_cache()
    rank.engine.admit(rank.request("a"))
    await rank.until_running("a-0")
    assert not await rank.engine.reset_cache()


async def test_what_is_aborted_before_it_began_counts_no_more(rank: Rank) -> None:
    for name in "abcd":
        rank.engine.admit(rank.request(name, n=MAX_WAITING)).abort()
        await until(lambda: rank.engine.load.num_waiting_reqs == 0, lambda: rank.engine.load)
    assert rank.core.asked == []


async def test_samples_that_the_first_one_fails_count_no_more(rank: Rank) -> None:
    for name in "abcd":
        rank.core.refused.add(f"{name}-0")
        with pytest.raises(InvalidRequestError, match="not this one"):
            await anext(rank.engine.admit(rank.request(name, n=MAX_WAITING)))
        await until(lambda: rank.engine.load.num_waiting_reqs == 0, lambda: rank.engine.load)


async def test_a_vllm_that_makes_no_step_says_so_and_is_asked_for_one_when_its_requests_are_gone() -> None:
    rank = Rank(stall_timeout_s=0.2)
    core, engine = rank.core, rank.engine
    await until(lambda: core.num_probes == 1, "warmed up")
    stream = engine.admit(rank.request("a"))
    await rank.until_running("a-0")
    core.put("a-0", 65)
    await anext(stream)
    assert engine.status.unavailable is None
    core.is_still = True
    await until(lambda: engine.status.unavailable, "seen to stand still")
    assert engine.status.unavailable == "no step for 0 s, though it has work"
    stream.abort()
    await until(lambda: core.num_probes == 2, "asked for a step")
    assert engine.status.unavailable is not None
    core.is_still = False
    await until(lambda: engine.status.unavailable is None, "available again")
    engine.check_health()
    engine.stop()


async def test_a_vllm_that_goes_on_standing_still_is_to_be_replaced() -> None:
    rank = Rank(stall_timeout_s=0.1)
    await until(lambda: rank.core.num_probes == 1, "warmed up")
    rank.engine.admit(rank.request("a"))
    await until(lambda: rank.engine.status.unavailable, "seen to stand still")
    rank.engine.check_health()

    def is_lost() -> bool:
        try:
            rank.engine.check_health()
        except EngineFailedError as error:
            return "stands still: no step for" in error.message
        return False

    await until(is_lost, "unhealthy")
    rank.engine.stop()
