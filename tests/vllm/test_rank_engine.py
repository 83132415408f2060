"""vLLM behind `RankEngine`, with the default model: what a request asks for, and what is published of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from app import hashing
from app.config import load_config
from app.engine.interface import RankEngine
from app.engine.load import load_engine
from app.engine.loading.torch_engine import load_step_engine
from app.errors import (
    EngineFailedError,
    InvalidRequestError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
)
from app.events.schema import BlockStored, CacheEvent, LoadStat
from app.generation import GenerateRequest, SamplingParams, StructuredOutput, TokenChunk
from app.text.tokenizer import Tokenizer
from tests.support.deadlines import until
from tests.support.engine.vllm_processes import engine_cores

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCK_SIZE = 32
SETTINGS = {
    "model": {"dtype": "float32"},
    "engine": {
        "backend": "vllm",
        "vllm": {"enforce_eager": True},
        "cache": {"block_size": BLOCK_SIZE, "num_blocks": 64},
        "scheduler": {"max_running_requests": 4, "max_waiting_requests": 4},
    },
}
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


class Listener:
    """Keeps what the engine says, as a publisher would send it."""

    def __init__(self) -> None:
        self.events: list[CacheEvent] = []
        self.loads: list[LoadStat] = []
        self.acknowledged: list[str] = []

    def publish(self, events: Sequence[CacheEvent]) -> None:
        self.events += events

    def publish_load(self, stat: LoadStat, acknowledged: Sequence[str]) -> None:
        self.loads.append(stat)
        self.acknowledged += acknowledged


class Served:
    """The engine, and requests to it that are numbered as they come."""

    def __init__(self, engine: RankEngine, listener: Listener) -> None:
        self.engine = engine
        self.listener = listener
        self.tokenizer = Tokenizer.from_folder(Path(engine.description.model_dir))
        self._count = 0

    def request(self, prompt: Sequence[int], params: SamplingParams, **fields: object) -> GenerateRequest:
        self._count += 1
        return GenerateRequest(f"r{self._count}", list(prompt), params, **fields)  # type: ignore[arg-type]

    async def run(self, prompt: Sequence[int], params: SamplingParams, **fields: object) -> list[TokenChunk]:
        await self.engine.prepare(params)
        return [chunk async for chunk in self.engine.admit(self.request(prompt, params, **fields))]

    async def tokens(self, prompt: Sequence[int], params: SamplingParams, **fields: object) -> list[int]:
        return output(await self.run(prompt, params, **fields))

    async def text(self, prompt: str, params: SamplingParams) -> str:
        return self.tokenizer.decode(await self.tokens(self.tokenizer.encode(prompt), params))

    def held(self) -> set[int]:
        """The hashes of the cache's content."""
        return {block.hash for block in self.engine.content(list).result()}


def output(chunks: Sequence[TokenChunk], index: int = 0) -> list[int]:
    return [token for chunk in chunks if chunk.index == index for token in chunk.token_ids]


def prompt_of(number: int, num_tokens: int = 100) -> list[int]:
    """Tokens that no other number's prompt begins with."""
    return [1000 + number, *range(2000, 1999 + num_tokens)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Served]:
    engine = load_engine(load_config(SETTINGS), 0)
    listener = Listener()
    engine.start(listener)
    yield Served(engine, listener)
    engine.stop()


async def test_greedy_tokens_and_logprobs_are_the_torch_engines(served: Served) -> None:
    prompt = served.tokenizer.encode("The capital of France is")
    params = SamplingParams(max_tokens=6, temperature=0, logprobs=3)
    chunks = await served.run(prompt, params)
    reference = load_step_engine(load_config({"model": {"dtype": "float32"}}))
    reference.add_request(GenerateRequest("r", prompt, params))
    expected = []
    while reference.has_work():
        expected += reference.step().outputs
    assert output(chunks) == [token for each in expected for token in each.new_token_ids]
    assert chunks[-1].finish_reason == expected[-1].finish_reason
    for chunk, other in zip(chunks, expected, strict=True):
        assert chunk.logprobs is not None
        assert other.logprobs is not None
        (found,), (wanted,) = chunk.logprobs, other.logprobs
        assert found.logprob == pytest.approx(wanted.logprob, abs=2e-3)
        assert [token for token, _ in found.likeliest] == [token for token, _ in wanted.likeliest]
        assert [each for _, each in found.likeliest] == pytest.approx(
            [each for _, each in wanted.likeliest], abs=2e-3
        )


async def test_a_prompts_logprobs_are_the_torch_engines_and_come_once(served: Served) -> None:
    prompt = [*served.tokenizer.encode("The capital of France is"), *range(3000, 3060)]
    params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, prompt_logprobs=2)
    reference = load_step_engine(load_config({"model": {"dtype": "float32"}}))
    reference.add_request(GenerateRequest("r", prompt, params))
    wanted = None
    while wanted is None:
        wanted = next((each.prompt_logprobs for each in reference.step().outputs), None)
    for _ in range(2):  # the second time the prompt is cached, which doesn't help
        first, *others = await served.run(prompt, params)
        assert first.num_cached_tokens == 0
        assert first.prompt_logprobs is not None
        assert [each.prompt_logprobs for each in others] == [None] * len(others)
        assert len(first.prompt_logprobs) == len(wanted) == len(prompt) - 1
        for found, other in zip(first.prompt_logprobs, wanted, strict=True):
            assert found.logprob == pytest.approx(other.logprob, abs=5e-3)
            values, others_values = ([value for _, value in each.likeliest] for each in (found, other))
            assert values == pytest.approx(others_values, abs=5e-3)


async def test_a_second_turn_is_cached_and_every_block_is_published_in_our_chain(served: Served) -> None:
    prompt = prompt_of(1)
    first = await served.run(prompt, GREEDY)
    assert (first[0].num_prompt_tokens, first[0].num_cached_tokens) == (100, 0)
    second = await served.run([*prompt, *output(first), *range(50)], GREEDY)
    assert {chunk.num_cached_tokens for chunk in second} == {96}
    wanted = set(hashing.wire_hashes(hashing.chain([*prompt, *output(first), *range(50)], BLOCK_SIZE)))
    await until(lambda: wanted <= served.held(), "its blocks in the content")
    stored = [event for event in served.listener.events if isinstance(event, BlockStored)]
    assert wanted <= {each for event in stored for each in event.block_hashes}
    assert served.engine.num_cached_blocks == len(served.held())
    assert served.engine.status.partial_cache is None


async def test_a_salt_keeps_prompts_apart(served: Served) -> None:
    prompt = prompt_of(2)
    for salt, cached in ((None, 0), ("one", 0), ("two", 0), ("one", 96), ("two", 96), (None, 96)):
        chunks = await served.run(prompt, GREEDY, cache_salt=salt)
        assert chunks[0].num_cached_tokens == cached, salt
    for salt in (None, "one", "two"):
        wanted = hashing.wire_hashes(hashing.chain(prompt, BLOCK_SIZE, hashing.seed(salt)))
        assert served.held().issuperset(wanted), salt


async def test_each_field_does_what_it_says(served: Served) -> None:
    prompt = prompt_of(3)
    plain = await served.tokens(prompt, GREEDY)

    def greedy(**fields: object) -> SamplingParams:
        return SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, **fields)  # type: ignore[arg-type]

    def sampled(**fields: object) -> SamplingParams:
        return SamplingParams(max_tokens=8, ignore_eos=True, **fields)  # type: ignore[arg-type]

    assert await served.tokens(prompt, greedy(logit_bias={7777: 100.0})) == [7777] * 8
    ended = await served.run(prompt, greedy(stop_token_ids=(plain[2],)))
    assert output(ended) == plain[: plain.index(plain[2]) + 1]
    assert ended[-1].finish_reason == "stop"
    late = await served.tokens(prompt, greedy(stop_token_ids=(plain[2],), min_tokens=6))
    assert len(late) >= 6
    assert plain[2] not in late[:5]
    for off in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-6}):
        assert await served.tokens(prompt, sampled(**off)) == plain, off
    often = await served.tokens(prompt, greedy(logit_bias={7777: 12.0}))
    punished = await served.tokens(prompt, greedy(logit_bias={7777: 12.0}, frequency_penalty=2.0))
    assert punished.count(7777) <= often.count(7777)
    once = await served.tokens(prompt, greedy(repetition_penalty=100.0))
    assert len(set(once)) == len(once)
    seeded = [await served.tokens(prompt, sampled(seed=seed, temperature=2.0)) for seed in (-1, -1, 5, 2**70)]
    assert seeded[0] == seeded[1]
    assert len({tuple(tokens) for tokens in seeded}) == 3
    eos = served.tokenizer.eos_token_ids[0]
    model_ended = await served.run(
        prompt, SamplingParams(max_tokens=8, temperature=0, logit_bias={eos: 100.0})
    )
    assert (output(model_ended), model_ended[-1].finish_reason) == ([eos], "stop")
    ignoring = await served.tokens(prompt, greedy(logit_bias={eos: 100.0}))
    assert ignoring == [eos] * 8


async def test_several_samples_also_greedy_ones(served: Served) -> None:
    prompt = prompt_of(4)
    chunks = await served.run(prompt, GREEDY, n=2)
    assert output(chunks, 0) == output(chunks, 1) == await served.tokens(prompt, GREEDY)
    assert {chunk.num_cached_tokens for chunk in chunks} == {0}
    params = SamplingParams(max_tokens=8, temperature=2.0, seed=3, ignore_eos=True)
    different = await served.run(prompt, params, n=2)
    assert output(different, 0) != output(different, 1)
    assert output(different, 0) == await served.tokens(prompt, params)


async def test_a_stop_string_ends_with_the_token_that_completes_it(served: Served) -> None:
    prompt = served.tokenizer.encode("Count: one, two, three,")
    params = SamplingParams(max_tokens=20, temperature=0, stop=(" six",))
    chunks = await served.run(prompt, params)
    assert chunks[-1].finish_reason == "stop"
    assert served.tokenizer.decode(output(chunks)) == " four, five, six"
    await until(lambda: served.engine.load.num_running_reqs == 0, "the rest aborted")


async def test_an_output_that_another_rank_began_goes_on(served: Served) -> None:
    prompt = served.tokenizer.encode("Count: one, two, three,")
    params = SamplingParams(max_tokens=20, temperature=0, stop=(" six,",), logprobs=0)
    whole = await served.tokens(prompt, params)
    for count in (1, 3, len(whole) - 1):
        rest = await served.run(prompt, params, earlier_outputs={0: whole[:count]})
        assert [*whole[:count], *output(rest)] == whole
        assert rest[-1].finish_reason == "stop"
        assert rest[0].num_prompt_tokens == len(prompt)
    for field in ({"seed": 1}, {"presence_penalty": 1.0}, {"frequency_penalty": 1.0}):
        refused = SamplingParams(max_tokens=20, **field)
        with pytest.raises(InvalidRequestError, match=next(iter(field))):
            await served.run(prompt, refused, earlier_outputs={0: whole[:2]})
    with pytest.raises(InvalidRequestError, match="the output ended with token number"):
        await served.run(prompt, params, earlier_outputs={0: whole})


@pytest.mark.parametrize(
    ("kind", "source", "allowed"),
    [
        ("choice", '["yes", "no"]', ("yes", "no")),
        ("regex", "[ab]{3}c", ()),
        ("grammar", 'root ::= "north" | "south"', ("north", "south")),
        ("grammar", 'start: "x" ("y" | "z")', ("xy", "xz")),
    ],
)
async def test_structured_output(kind: str, source: str, allowed: Sequence[str], served: Served) -> None:
    wanted = StructuredOutput(kind, source, "structured_outputs")  # type: ignore[arg-type]
    params = SamplingParams(max_tokens=20, structured_output=wanted, ignore_eos=True)
    text = await served.text("Say it:", params)
    assert text in allowed if allowed else len(text) == 4, text


async def test_a_json_schema(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    wanted = StructuredOutput("json_schema", json.dumps(schema), "response_format")
    text = await served.text("JSON:", SamplingParams(max_tokens=60, temperature=0, structured_output=wanted))
    assert json.loads(text)["answer"] in ("yes", "no")


async def test_what_vllm_cant_honour_is_refused_by_name(served: Served) -> None:
    prompt = prompt_of(5)
    broken = StructuredOutput("regex", "[a-", "structured_outputs.regex")
    structured = StructuredOutput("regex", "a+", "structured_outputs.regex")
    for param, params in {
        "temperature": SamplingParams(max_tokens=1, temperature=2.5),
        "structured_outputs.regex": SamplingParams(max_tokens=1, structured_output=broken),
        "min_tokens": SamplingParams(max_tokens=2, min_tokens=1, structured_output=structured),
        "logit_bias": SamplingParams(max_tokens=1, logit_bias={49152: 1.0}),
        "stop_token_ids": SamplingParams(max_tokens=1, stop_token_ids=(49152,)),
    }.items():
        with pytest.raises(InvalidRequestError) as refusal:
            await served.run(prompt, params)
        assert (refusal.value.param, param in refusal.value.message) == (param, True)
    with pytest.raises(InvalidRequestError, match="n = 5; allowed: 1 to 4"):
        await served.run(prompt, GREEDY, n=5)
    with pytest.raises(PromptTooLongError):
        await served.run(prompt_of(5, 64 * BLOCK_SIZE), GREEDY)


async def test_an_abort_frees_its_blocks_and_idleness_is_reported_at_once(served: Served) -> None:
    params = SamplingParams(max_tokens=1000, ignore_eos=True)
    request = served.request(prompt_of(6), params)
    stream = served.engine.admit(request)
    await anext(stream)
    await until(lambda: served.engine.load.num_running_reqs == 1, "a report of it running")
    await until(lambda: served.engine.load.num_tokens >= 100, "a report of its blocks")
    assert request.request_id in served.listener.acknowledged
    stream.abort()
    async for chunk in stream:  # what was delivered before
        assert chunk.finish_reason is None
    await until(lambda: served.engine.load.num_running_reqs == 0, "a report of idleness")
    assert (served.engine.load.num_tokens, served.engine.load.num_waiting_reqs) == (0, 0)
    # The next one needs all blocks of the cache: it has them only if the aborted one's are free.
    largest = await served.run(
        prompt_of(7, 64 * BLOCK_SIZE - 40), SamplingParams(max_tokens=30, ignore_eos=True)
    )
    assert len(output(largest)) == 30


async def test_a_full_queue_refuses_and_lower_priority_goes_first(served: Served) -> None:
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    running = [served.engine.admit(served.request(prompt_of(10 + number), params)) for number in range(4)]
    for stream in running:
        await anext(stream)
    await until(lambda: served.engine.load.num_running_reqs == 4, "a full batch")
    ended: list[str] = []

    async def finish(name: str, priority: int) -> None:
        short = SamplingParams(max_tokens=1, ignore_eos=True)
        await served.run(prompt_of(20 + priority), short, priority=priority)
        ended.append(name)

    waiting = [asyncio.create_task(finish("last", 3)), asyncio.create_task(finish("first", -1))]
    for number in (2, 1):
        waiting.append(asyncio.create_task(finish(f"{number}", number)))
    await until(lambda: served.engine.load.num_waiting_reqs == 4, "a full queue")
    assert served.engine.load.num_waiting_uncached_tokens >= 4 * 100 - 32
    with pytest.raises(QueueFullError, match="4 requests wait; at most 4 may"):
        await served.run(prompt_of(30), GREEDY)
    for stream in running:
        stream.abort()
    await asyncio.gather(*waiting)
    assert ended == ["first", "1", "2", "last"]


async def test_the_prefill_rate_is_of_busy_time_alone(served: Served) -> None:
    before = served.engine.load
    began = asyncio.get_running_loop().time()
    for number in range(3):
        await served.run(
            prompt_of(40 + number, 500), SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
        )
        await asyncio.sleep(0.2)  # idle time, which must not count
    await until(lambda: served.engine.load.num_running_reqs == 0, "idleness reported")
    after, elapsed = served.engine.load, asyncio.get_running_loop().time() - began
    tokens = after.total_prefill_uncached_tokens - before.total_prefill_uncached_tokens
    busy_s = (after.total_prefill_busy_us - before.total_prefill_busy_us) / 1e6
    assert tokens == 1500
    assert 0 < busy_s < elapsed - 0.6


async def test_a_reset_empties_the_cache_and_says_so(served: Served) -> None:
    prompt = prompt_of(50)
    await served.run(prompt, GREEDY)
    await until(lambda: served.engine.num_cached_blocks > 0, "blocks")
    assert await served.engine.reset_cache()
    assert served.engine.num_cached_blocks == 0
    assert served.held() == set()
    assert (await served.run(prompt, GREEDY))[0].num_cached_tokens == 0


async def test_eviction_is_followed_block_by_block(served: Served) -> None:
    """More prompts than the cache holds: each prompt's hits are what the content says of it."""
    for number in range(60, 72):
        await served.run(prompt_of(number, 300), GREEDY)
    for number in (60, 65, 71):
        prompt = prompt_of(number, 300)
        hashes = hashing.wire_hashes(hashing.chain(prompt, BLOCK_SIZE))

        def num_held(hashes: Sequence[int] = hashes) -> int:
            held = served.held()
            missing = next((index for index, each in enumerate(hashes) if each not in held), len(hashes))
            return missing * BLOCK_SIZE

        # What the last step published arrives a moment later.
        expected = num_held()
        chunks = await served.run(prompt, GREEDY)
        assert chunks[0].num_cached_tokens == expected
    assert len(served.held()) <= 64


async def test_a_dead_engine_core_fails_its_requests_and_the_health_check() -> None:
    """Last: it needs an engine of its own, and two don't start at once."""
    engine = load_engine(load_config(SETTINGS), 0)
    engine.start(None)
    params = SamplingParams(max_tokens=1000, ignore_eos=True)
    stream = engine.admit(GenerateRequest("r", prompt_of(1), params))
    waiting = engine.admit(GenerateRequest("s", prompt_of(2), params))
    await anext(stream)
    os.kill(engine_cores(os.getpid())[-1], signal.SIGKILL)  # the latest
    for each in (stream, waiting):
        with pytest.raises(RequestError) as failure:
            async for _ in each:
                pass
        assert isinstance(failure.value, EngineFailedError)
    with pytest.raises(EngineFailedError):
        engine.check_health()
    with pytest.raises(EngineFailedError):
        engine.admit(GenerateRequest("t", prompt_of(3), params))
    engine.stop()
