"""Turns a rank's tokens into the text of an answer: in one piece, or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.openai.logprobs import AnswerLogprobs, Json
from app.api.openai.responses import STREAM_END, AnswerShape, Choice, Usage, error_json, sse
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.errors import RequestError
from app.generation import TokenChunk
from app.text.text_stream import TextStream

MissedTokens = Callable[[], Mapping[str, int]]
"""Says, at an answer's end, how many tokens were missed for which reason, by the names that usage has."""


class SampleText:
    """Turns one sample's token chunks into text and logprobs."""

    def __init__(self, shape: AnswerShape, text: TextStream) -> None:
        self._text = text
        self._logprobs = None if shape.spell is None else AnswerLogprobs(shape.kind, shape.spell)
        self._parts: list[str] = []
        self._shown_logprobs: list[Json] | None = None if shape.spell is None else []
        self._finish_reason: str | None = None

    def take(self, chunk: TokenChunk) -> tuple[str, list[Json] | None]:
        """The text that is safe to send after `chunk`, at the end all of it, and an entry per token."""
        text = "".join(map(self._text.push, chunk.token_ids))
        if chunk.finish_reason is not None:
            text += self._text.flush()
        logprobs = None if self._logprobs is None else self._logprobs.take(chunk)
        self._parts.append(text)
        if self._shown_logprobs is not None:
            self._shown_logprobs += logprobs or []
        self._finish_reason = chunk.finish_reason
        return text, logprobs

    @property
    def choice(self) -> Choice:
        """The whole sample so far."""
        return Choice("".join(self._parts), self._finish_reason, self._shown_logprobs)


class UsageCounter:
    """Counts the tokens of all samples, and the prompt once."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self.usage = Usage(0, 0, 0)

    def take(self, chunk: TokenChunk) -> None:
        """Count a chunk."""
        self._num_tokens += len(chunk.token_ids)
        self.usage = Usage(chunk.num_prompt_tokens, chunk.num_cached_tokens, self._num_tokens)


async def whole_answer(
    shape: AnswerShape, stream: RankStream, *texts: TextStream, missed: MissedTokens = dict
) -> Json:
    """The answer in one piece, with a text per sample.

    Raises:
        RequestError: the rank died or its engine failed before the end.
    """
    samples = [SampleText(shape, text) for text in texts]
    counter = UsageCounter()
    try:
        async for chunk in stream:
            samples[chunk.index].take(chunk)
            counter.take(chunk)
    finally:
        stream.cancel()
    usage = replace(counter.usage, missed_tokens=missed())
    return shape.whole([sample.choice for sample in samples], usage)


async def stream_answer(
    shape: AnswerShape,
    stream: RankStream,
    *texts: TextStream,
    with_usage: bool,
    missed: MissedTokens = dict,
) -> AsyncIterator[bytes]:
    """The answer as server-sent events: `[DONE]` ends a whole one, an error event an incomplete one."""
    samples = [SampleText(shape, text) for text in texts]
    counter = UsageCounter()
    begun: set[int] = set()
    try:
        async for chunk in stream:
            index, ended = chunk.index, chunk.finish_reason
            counter.take(chunk)
            piece, logprobs = samples[index].take(chunk)
            if piece or logprobs or ended is not None:
                is_first = index not in begun
                yield sse(shape.chunk(piece, ended, is_first=is_first, index=index, logprobs=logprobs))
                begun.add(index)
        if with_usage:
            yield sse(shape.usage_chunk(replace(counter.usage, missed_tokens=missed())))
        yield STREAM_END
    except RequestError as error:
        yield sse(error_json(error))


class AnswerEvents(StreamingResponse):
    """Server-sent events. At their end, however it comes, the request is cancelled on its rank.

    The iteration's own end would not do: when a client disconnects before the first event, it never begins.

    Args:
        events: what is sent, made of `stream`.
        stream: the request's.
        headers: more of them.
    """

    def __init__(
        self, events: AsyncIterator[bytes], stream: RankStream, headers: Mapping[str, str] | None = None
    ) -> None:
        headers = {"x-dp-rank": str(stream.rank), **(headers or {})}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Called once, by the server."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.cancel()
