"""A `RankEngine` that plays a script instead of computing: for clients whose prompts need a large model.

`script.json`, in the model's folder, is a list of texts, one for each turn of a conversation with tools: the
first answers a prompt without results of calls, the next one with one result, and so on; the last goes on for
ever. A prompt that offers no tools gets the last one too. What a grammar doesn't allow is an error: the
script is held to what the client asked for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from app.engine.interface import EngineDescription, EngineListener, EngineStatus, Result
from app.errors import RequestFailedError
from app.events.schema import LoadStat
from app.events.snapshot import CachedBlock
from app.generation import GenerateRequest, SamplingParams, TokenChunk
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer

TOOLS, RESULT = "<tools>", "<tool_response>"
"""What the model's template writes before tools, and before each result of a call."""
NUM_BLOCKS, BLOCK_SIZE = 8192, 16


class ScriptedEngine:
    """See `RankEngine`. It caches nothing.

    Args:
        folder: the model's.
        dp_rank: the rank's number.
        max_model_len: tokens of the context.
    """

    def __init__(self, folder: Path, dp_rank: int, max_model_len: int) -> None:
        self._tokenizer = Tokenizer.from_folder(folder)
        self._eos = list(self._tokenizer.eos_token_ids)
        self._grammars = GrammarCompiler.from_folder(folder, self._eos)
        self._script = folder / "script.json"
        self._rank = dp_rank
        self._listener: EngineListener | None = None
        self._num_running = 0
        limits = (max_model_len, max_model_len - 1, NUM_BLOCKS)
        self.description = EngineDescription(str(folder), *limits, "cpu", "float32", "script")
        self.status = EngineStatus()
        self.num_cached_blocks = 0

    @property
    def load(self) -> LoadStat:
        """See `RankEngine`."""
        max_tokens = NUM_BLOCKS * BLOCK_SIZE
        return LoadStat(self._num_running, 0, 0, max_tokens, self._rank, 0, 0, 64, 0, 0)

    def renumber(self, dp_rank: int) -> None:
        """See `RankEngine`."""
        self._rank = dp_rank

    def start(self, listener: EngineListener | None) -> None:
        """See `RankEngine`."""
        self._listener = listener
        self._report()

    def stop(self) -> None:
        """See `RankEngine`."""

    def check_health(self) -> None:
        """See `RankEngine`."""

    async def prepare(self, params: SamplingParams) -> None:
        """See `RankEngine`."""
        if params.structured_output is not None:
            await asyncio.to_thread(self._grammars.grammar, params.structured_output)

    def admit(self, request: GenerateRequest) -> ScriptedRequest:
        """See `RankEngine`."""
        self._num_running += 1
        self._report(request.request_id)
        return ScriptedRequest(self._play(request), self._end)

    def _end(self) -> None:
        self._num_running -= 1
        self._report()

    def content(self, read: Callable[[Sequence[CachedBlock]], Result]) -> Future[Result]:
        """See `RankEngine`."""
        future: Future[Result] = Future()
        try:
            future.set_result(read([]))
        except Exception as error:
            future.set_exception(error)
        return future

    async def reset_cache(self) -> bool:
        """See `RankEngine`."""
        return True

    def _report(self, *acknowledged: str) -> None:
        if self._listener is not None:
            self._listener.publish_load(self.load, acknowledged)

    async def _play(self, request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        wanted = request.params.structured_output
        grammar = None if wanted is None else self._grammars.grammar(wanted)
        text = self._line_for(self._tokenizer.decode(request.prompt_token_ids, False))
        token_ids = [*self._tokenizer.encode(text, False), self._eos[0]][: request.params.max_tokens]
        for place, token_id in enumerate(token_ids):
            if grammar is not None and not grammar.is_finished:
                if not grammar.allowed_tokens()[token_id]:
                    written = self._tokenizer.decode(token_ids[: place + 1], False)
                    raise RequestFailedError(f"the grammar doesn't allow the end of {written!r}")
                grammar.accept(token_id)
            is_last = place == len(token_ids) - 1
            reason = ("stop" if token_id == self._eos[0] else "length") if is_last else None
            yield TokenChunk([token_id], len(request.prompt_token_ids), 0, reason)
            await asyncio.sleep(0)

    def _line_for(self, prompt: str) -> str:
        script: list[str] = json.loads(self._script.read_text())
        num_results = prompt.count(RESULT) if TOOLS in prompt else len(script)
        return script[min(num_results, len(script) - 1)]


class ScriptedRequest:
    """See `AdmittedRequest`."""

    def __init__(self, chunks: AsyncIterator[TokenChunk], on_end: Callable[[], None]) -> None:
        self._chunks = chunks
        self._on_end = on_end
        self._has_ended = False

    def __aiter__(self) -> AsyncIterator[TokenChunk]:
        return self

    async def __anext__(self) -> TokenChunk:
        return await anext(self._chunks)

    def abort(self) -> None:
        """See `AdmittedRequest`."""
        if not self._has_ended:
            self._has_ended = True
            self._on_end()
