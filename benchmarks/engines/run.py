"""One run of one engine's graph: conversations, then many streams at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from benchmarks.engines.graphs import DP_SIZE
from benchmarks.serving.client import ChatClient
from benchmarks.serving.drive import hold_all, wait_until_ready, warm_up
from benchmarks.serving.summary import Summary, summarize
from benchmarks.serving.workload import Conversation, make_prompt

CONCURRENCY = 4
STAGGER_S = 0.2
ANSWER_TOKENS = 12
STREAM_WORDS = 40


@dataclass(frozen=True)
class EngineRun:
    """What was measured: the conversations' figures, and output tokens per second of `streams` at once."""

    conversations: Summary
    stream_tokens_per_s: float


async def measure(
    url: str, conversations: list[Conversation], *, streams: int, stream_tokens: int, label: str
) -> EngineRun:
    """Measure the graph that is deployed at `url`, whose caches are empty.

    Raises:
        RequestFailedError: a request got no whole answer.
        TimeoutError: the graph did not get ready.
    """
    async with ChatClient(url, answer_tokens=ANSWER_TOKENS, concurrency=CONCURRENCY) as client:
        await wait_until_ready(client, DP_SIZE)
        await warm_up(client, DP_SIZE)
        started = time.perf_counter()
        replies = await hold_all(client, conversations, STAGGER_S, label)
        summary = summarize(replies, time.perf_counter() - started)
    return EngineRun(summary, await _stream_tokens_per_s(url, streams, stream_tokens))


async def _stream_tokens_per_s(url: str, streams: int, stream_tokens: int) -> float:
    prompts = [make_prompt(STREAM_WORDS, seed=number) for number in range(streams)]
    async with ChatClient(url, answer_tokens=stream_tokens, concurrency=streams) as client:
        # Batches of this size once before: an engine may prepare itself for a size when it meets it.
        await asyncio.gather(*(client.chat(prompt, cache_salt="warm-up") for prompt in prompts))
        started = time.perf_counter()
        await asyncio.gather(*(client.chat(prompt) for prompt in prompts))
        return streams * stream_tokens / (time.perf_counter() - started)
