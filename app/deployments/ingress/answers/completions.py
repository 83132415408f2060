"""Turns a rank's tokens into the text of an answer: in one piece, or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from app.api.openai.logprobs import AnswerLogprobs, Json
from app.api.openai.message_parts import MessageParts
from app.api.openai.responses import STREAM_END, AnswerShape, Choice, UsageInStream, error_json, sse
from app.deployments.ingress.answers.reading import ChunkStream, SampleReader, UsageCounter
from app.errors import RequestError
from app.generation import TokenChunk
from app.text.output.parts import Text
from app.text.text_stream import TextStream

Result = TypeVar("Result")
MissedTokens = Callable[[], Mapping[str, int]]
"""Says, at an answer's end, how many tokens were missed for which reason, by the names that usage has."""
LONG_PROMPT = 200
"""Tokens whose logprobs take some 10 ms to write."""
MISTRAL_ID_CHARS = 9
"""Of a call's id: the templates of Mistral's models refuse any other."""


class SampleText:
    """Turns one sample's token chunks into text, calls, thoughts and logprobs."""

    def __init__(self, shape: AnswerShape, text: TextStream, index: int = 0) -> None:
        self._shape = shape
        self._reader = SampleReader(text, shape.output.parser())
        self._message = MessageParts(
            f"{shape.request_id}-{index}",
            id_chars=MISTRAL_ID_CHARS if shape.output.calls == "mistral" else None,
            shows_thoughts=shape.shows_thoughts,
        )
        self._logprobs = None if shape.spell is None else AnswerLogprobs(shape.kind, shape.spell)
        self._parts: list[str] = []
        self._token_ids: list[int] = []
        self._has_begun = False
        self._shown_logprobs: list[Json] | None = None if shape.spell is None else []
        self._finish_reason: str | None = None
        self._echo = shape.echo(index)

    def take(self, chunk: TokenChunk) -> tuple[list[Json], list[Json] | None]:
        """The deltas that are safe to send after `chunk`, at the end all of them, and an entry per token."""
        echo, self._echo = self._echo, None
        before: list[Json] = []
        if echo is not None and self._logprobs is not None:
            before = self._logprobs.echo(echo, chunk.prompt_logprobs or ())
        text, parts = self._reader.take(chunk)
        if echo is not None:
            text, parts = echo.text + text, [Text(echo.text), *parts]
        deltas = self._message.take(parts)
        logprobs = None if self._logprobs is None else [*before, *self._logprobs.take(chunk)]
        self._parts.append(text)
        if self._shape.prompt_token_ids is not None:
            self._token_ids += chunk.token_ids
        if self._shown_logprobs is not None:
            self._shown_logprobs += logprobs or []
        is_call = self._message.has_calls and chunk.finish_reason == "stop"
        self._finish_reason = "tool_calls" if is_call else chunk.finish_reason
        return deltas, logprobs

    def events(self, chunk: TokenChunk) -> list[Json]:
        """What a stream has after `chunk`: what is new, and at the end an event with the reason alone."""
        return list(self._events(chunk))

    def _events(self, chunk: TokenChunk) -> Iterator[Json]:
        deltas, logprobs = self.take(chunk)
        has_tokens = self._shape.prompt_token_ids is not None and chunk.token_ids
        # A chat that ends without a text has a message all the same.
        is_empty = chunk.finish_reason is not None and self._shape.kind == "chat" and not self._has_begun
        if not deltas and (logprobs or has_tokens or is_empty):
            deltas = [{"content": ""}]
        more: Json = {"logprobs": logprobs, "token_ids": chunk.token_ids}
        for delta in deltas:
            text = delta.get("content", "")
            is_first = not self._has_begun
            yield self._shape.chunk(text, is_first=is_first, index=chunk.index, delta=delta, **more)
            self._has_begun, more = True, {}
        if self._finish_reason is not None:
            yield self._shape.end(self._finish_reason, chunk.index)

    @property
    def choice(self) -> Choice:
        """The whole sample so far."""
        message = self._message.whole()
        return Choice(
            "".join(self._parts), self._finish_reason, self._shown_logprobs, self._token_ids, message
        )


async def _worked_on(chunk: TokenChunk, work: Callable[[TokenChunk], Result]) -> Result:
    """What `work` makes of a chunk; with a long prompt's logprobs in a thread, off the event loop."""
    is_long = len(chunk.prompt_logprobs or ()) >= LONG_PROMPT
    return await asyncio.to_thread(work, chunk) if is_long else work(chunk)


async def whole_answer(
    shape: AnswerShape, stream: ChunkStream, *texts: TextStream, missed: MissedTokens = dict
) -> Json:
    """The answer in one piece, with a text per sample.

    Raises:
        RequestError: the rank died or its engine failed before the end.
    """
    samples = [SampleText(shape, text, index) for index, text in enumerate(texts)]
    counter = UsageCounter(shape.prompt_of)
    try:
        async for computed in stream:
            chunk = shape.shown(computed)
            await _worked_on(chunk, samples[chunk.index].take)
            counter.take(chunk)
    finally:
        stream.cancel()
    usage = replace(counter.usage, missed_tokens=missed())
    return shape.whole([sample.choice for sample in samples], usage)


async def stream_answer(
    shape: AnswerShape,
    stream: ChunkStream,
    *texts: TextStream,
    usage: UsageInStream,
    missed: MissedTokens = dict,
) -> AsyncIterator[bytes]:
    """The answer as server-sent events: `[DONE]` ends a whole one, an error event an incomplete one."""
    samples = [SampleText(shape, text, index) for index, text in enumerate(texts)]
    counter = UsageCounter(shape.prompt_of)
    try:
        async for computed in stream:
            chunk = shape.shown(computed)
            counter.take(chunk)
            counts = {"usage": counter.usage.as_json()} if usage == "every chunk" else {}
            for event in await _worked_on(chunk, samples[chunk.index].events):
                yield sse(event | counts)
        if usage != "none":
            yield sse(shape.usage_chunk(replace(counter.usage, missed_tokens=missed())))
        yield STREAM_END
    except RequestError as error:
        yield sse(error_json(error))
