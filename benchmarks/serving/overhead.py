"""The graph's overhead: time to first token over HTTP against the same engine in this process.

One request at a time, cold prompts, both sides in turn. The engine's side begins with token ids; so the
overhead is everything else: HTTP, the chat template, tokenizing, hashing, choosing a rank, and the transport
in both directions.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from app.config import AppConfig
from app.engine.loading.torch_engine import load_step_engine
from app.generation import GenerateRequest, SamplingParams
from app.models.store import resolve_model
from app.text.tokenizer import Tokenizer
from benchmarks.serving.client import ChatClient, RequestFailedError
from benchmarks.serving.workload import Message


@dataclass(frozen=True)
class TtftPair:
    """The same cold prompt over HTTP and in the engine; seconds."""

    http_s: float
    engine_s: float


class LocalEngine:
    """The ranks' engine in this process, with as many threads as one rank has."""

    def __init__(self, config: AppConfig) -> None:
        self._tokenizer = Tokenizer.from_folder(resolve_model(config.model))
        self._engine = load_step_engine(config)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt, as the ingress makes them."""
        return self._tokenizer.encode(self._tokenizer.render_chat(messages))

    def ttft_s(self, token_ids: Sequence[int], cache_salt: str) -> float:
        """Seconds from token ids to the first output token, which is the only one."""
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        started = time.perf_counter()
        self._engine.add_request(GenerateRequest(cache_salt, list(token_ids), params, cache_salt))
        while self._engine.has_work():
            self._engine.step()
        return time.perf_counter() - started


async def measure_pair(
    client: ChatClient, engine: LocalEngine, messages: Sequence[Message], *, http_first: bool
) -> TtftPair:
    """One prompt on both sides. `client` must ask for one token; a new salt for each makes the prompt cold.

    Raises:
        RequestFailedError: no answer, or from a warm cache.
    """
    token_ids = engine.encode(messages)
    if not http_first:
        engine_s = engine.ttft_s(token_ids, uuid.uuid4().hex)
    reply = await client.chat(messages, cache_salt=uuid.uuid4().hex)
    if reply.cached_tokens or reply.prompt_tokens != len(token_ids):
        raise RequestFailedError(f"meant to be cold and of {len(token_ids)} tokens: {reply}")
    if http_first:
        engine_s = engine.ttft_s(token_ids, uuid.uuid4().hex)
    return TtftPair(reply.ttft_s, engine_s)


def overhead_ms(pairs: Sequence[TtftPair]) -> dict[str, float]:
    """Medians of both sides and their difference, in milliseconds."""
    http_ms = 1000 * median(pair.http_s for pair in pairs)
    engine_ms = 1000 * median(pair.engine_s for pair in pairs)
    return {"http_ttft_ms": http_ms, "engine_ttft_ms": engine_ms, "overhead_ms": http_ms - engine_ms}
