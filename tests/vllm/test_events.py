"""vLLM alone: it starts, generates, and its KV events are what ours are made from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from vllm import SamplingParams
from vllm.config import KVEventsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from app.events.batch_codec import decode_batch
from app.events.schema import BlockStored, split_message

BLOCK_SIZE = 32  # tokens; the CPU build's are multiples of 32
NUM_TRIES = 20


@pytest.fixture
def events() -> Iterator[zmq.asyncio.Socket]:
    """Bound, because vLLM binds wildcards only, and connects to any other address."""
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        socket.subscribe(b"")
        socket.bind("tcp://127.0.0.1:*")
        yield socket


@pytest.fixture
async def engine(smollm2_dir: Path, events: zmq.asyncio.Socket) -> AsyncIterator[AsyncLLM]:
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(smollm2_dir),
            block_size=BLOCK_SIZE,
            max_model_len=2048,
            enforce_eager=True,
            kv_events_config=KVEventsConfig(
                enable_kv_cache_events=True, endpoint=events.getsockopt_string(zmq.LAST_ENDPOINT)
            ),
        )
    )
    yield engine
    engine.shutdown()


def prompt(number: int) -> list[int]:
    """Three blocks that no other prompt has."""
    return [100 + number, *range(200, 199 + 3 * BLOCK_SIZE)]


async def generate(engine: AsyncLLM, token_ids: list[int], request_id: str) -> None:
    params = SamplingParams(max_tokens=1, temperature=0.0)
    async for output in engine.generate({"prompt_token_ids": token_ids}, params, request_id):
        assert output.prompt_token_ids == token_ids


@pytest.mark.short
async def test_a_prompts_blocks_are_published(engine: AsyncLLM, events: zmq.asyncio.Socket) -> None:
    for number in range(NUM_TRIES):  # what is published before it has read our subscription is lost
        await generate(engine, prompt(number), str(number))
        if await events.poll(1000):
            break
    _, seq, payload = split_message(await events.recv_multipart())
    (stored,) = decode_batch(payload).events
    assert isinstance(stored, BlockStored)
    assert (stored.block_size, stored.parent_block_hash, stored.token_ids) == (BLOCK_SIZE, None, prompt(seq))
