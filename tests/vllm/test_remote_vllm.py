"""A real vLLM server as a worker by URL: found, followed, relayed, served from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.remote.engine import RemoteEngine
from app.engine.remote.worker import Expected, RemoteRank
from app.errors import InvalidRequestError
from app.generation import SamplingParams, StructuredOutput
from app.hashing import chain, seed, wire_hashes
from tests.support.deadlines import until
from tests.support.engine.live_engine import all_of, error_of, new_request, tokens
from tests.support.engine.recorded import Recorded
from tests.support.engine.vllm_server import BLOCK_SIZE, VllmServer
from tests.support.graph.exchanges import new_prompt

GREEDY = SamplingParams(8, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def server(smollm2_dir: Path) -> Iterator[VllmServer]:
    server = VllmServer(smollm2_dir, "--enable-scale-out")
    server.start()
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.kill()


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
async def engine(server: VllmServer, smollm2_dir: Path, recorded: Recorded) -> AsyncIterator[RemoteEngine]:
    engine = RemoteEngine(
        RemoteRank(
            dp_rank=0,
            url=server.url,
            worker_rank=0,
            expected=Expected(1, frozenset((str(smollm2_dir),)), 2048),
            model_dir=str(smollm2_dir),
            block_size=BLOCK_SIZE,
            max_requests=64,
            may_flush=True,
            stall_timeout_s=10.0,
        )
    )
    engine.start(recorded)
    await until(lambda: engine.status.unavailable is None, lambda: engine.status)
    await until(lambda: engine.status.partial_cache is None, lambda: engine.status)
    yield engine
    engine.stop()
    await engine.wait_stopped()


def names(token_ids: list[int], cache_salt: str | None = None) -> set[int]:
    return set(wire_hashes(chain(token_ids, BLOCK_SIZE, seed(cache_salt))))


async def test_its_blocks_are_published_in_our_chain(engine: RemoteEngine, recorded: Recorded) -> None:
    prompt = new_prompt(100)
    output = tokens(await all_of(engine.admit(new_request("a", prompt, replace(GREEDY, max_tokens=40)))))
    expected = names(prompt + output[:-1])
    assert len(expected) == 4
    await until(lambda: expected <= recorded.hashes, lambda: recorded.hashes)
    again = await all_of(engine.admit(new_request("b", prompt, GREEDY)))
    assert tokens(again) == output[:8]
    assert (again[-1].num_prompt_tokens, again[-1].num_cached_tokens) == (100, 96)
    content = engine.content(lambda blocks: {block.hash for block in blocks})
    assert await asyncio.wrap_future(content) == recorded.hashes


async def test_salts_keep_blocks_apart(engine: RemoteEngine, recorded: Recorded) -> None:
    prompt = new_prompt(70)
    await all_of(engine.admit(new_request("c", prompt, GREEDY, cache_salt="pepper")))
    await until(lambda: names(prompt, "pepper") <= recorded.hashes, lambda: recorded.hashes)
    assert not names(prompt) & recorded.hashes
    refused = await error_of(engine.admit(new_request("d", prompt, GREEDY, cache_salt="a/b")))
    assert isinstance(refused, InvalidRequestError)


async def test_every_sampling_field_is_taken(engine: RemoteEngine) -> None:
    params = SamplingParams(
        6,
        temperature=0.7,
        top_k=20,
        top_p=0.9,
        min_p=0.01,
        seed=7,
        stop=("zzzz",),
        stop_token_ids=(3,),
        min_tokens=2,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        repetition_penalty=1.1,
        logit_bias={17: -5.0},
        logprobs=3,
    )
    prompt = new_prompt(20)
    chunks = await all_of(engine.admit(new_request("e", prompt, params, n=2)))
    assert {chunk.index for chunk in chunks} == {0, 1}
    for chunk in chunks:
        assert chunk.logprobs is not None
        assert len(chunk.logprobs) == len(chunk.token_ids)
        assert all(len(each.likeliest) == 3 for each in chunk.logprobs)
    again = await all_of(engine.admit(new_request("f", prompt, params, n=2)))
    for index in range(2):
        first, second = ([c for c in each if c.index == index] for each in (chunks, again))
        assert tokens(first) == tokens(second)


@pytest.mark.parametrize(
    "wanted",
    [
        StructuredOutput("choice", '["yes", "no"]', "x"),
        StructuredOutput("regex", "[0-9]{3}", "x"),
        StructuredOutput("json_schema", '{"type": "boolean"}', "x"),
    ],
    ids=lambda wanted: wanted.kind,
)
async def test_structured_output(wanted: StructuredOutput, engine: RemoteEngine) -> None:
    params = SamplingParams(20, temperature=0.0, structured_output=wanted)
    chunks = await all_of(engine.admit(new_request(f"g-{wanted.kind}", new_prompt(20), params)))
    assert chunks[-1].finish_reason == "stop"


async def test_what_it_refuses_is_a_clients_error(engine: RemoteEngine) -> None:
    bad = replace(GREEDY, structured_output=StructuredOutput("regex", "(", "x"))
    raised = await error_of(engine.admit(new_request("i", new_prompt(20), bad)))
    assert isinstance(raised, InvalidRequestError), raised


async def test_an_aborted_request_ends_there(engine: RemoteEngine) -> None:
    admitted = engine.admit(new_request("j", new_prompt(20), replace(GREEDY, max_tokens=1500)))
    await anext(admitted)
    await until(lambda: engine.load.num_running_reqs >= 1, lambda: engine.load)
    admitted.abort()
    await until(lambda: engine.load.num_running_reqs == 0, lambda: engine.load)


async def test_a_flush_is_seen(engine: RemoteEngine, recorded: Recorded) -> None:
    await all_of(engine.admit(new_request("k", new_prompt(100), GREEDY)))
    await until(lambda: recorded.hashes, "stored")
    assert await engine.reset_cache()
    await until(lambda: not recorded.hashes, lambda: recorded.hashes)
    assert engine.description.kernels.startswith("vllm 0.")
    assert engine.description.num_blocks > 0
