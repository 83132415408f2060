"""Makes an answer's text out of a rank's tokens: in one piece, or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.deployments.dispatcher import RankStream
from app.deployments.messages import TokenChunk
from app.deployments.openai_logprobs import AnswerLogprobs, Json
from app.deployments.openai_responses import STREAM_END, AnswerShape, Usage, error_json, sse
from app.errors import RequestError
from app.text_stream import TextStream


class AnswerText:
    """Turns token chunks into text and logprobs, and counts them."""

    def __init__(self, shape: AnswerShape, text: TextStream) -> None:
        self._text = text
        self._logprobs = None if shape.spell is None else AnswerLogprobs(shape.kind, shape.spell)
        self._num_tokens = 0
        self.usage = Usage(0, 0, 0)

    def take(self, chunk: TokenChunk) -> str:
        """The text that is safe to send after `chunk`: after the last one, all that is left."""
        self._num_tokens += len(chunk.token_ids)
        self.usage = Usage(chunk.num_prompt_tokens, chunk.num_cached_tokens, self._num_tokens)
        text = "".join(map(self._text.push, chunk.token_ids))
        return text if chunk.finish_reason is None else text + self._text.flush()

    def take_logprobs(self, chunk: TokenChunk) -> list[Json] | None:
        """An entry per token of `chunk`; None if the answer has none."""
        return None if self._logprobs is None else self._logprobs.take(chunk)


async def whole_answer(shape: AnswerShape, stream: RankStream, text: TextStream) -> Json:
    """The answer in one piece.

    Raises:
        RequestError: the rank died or its engine failed before the end.
    """
    answer = AnswerText(shape, text)
    parts = []
    logprobs: list[Json] = []
    finish_reason = None
    try:
        async for chunk in stream:
            parts.append(answer.take(chunk))
            logprobs += answer.take_logprobs(chunk) or []
            finish_reason = chunk.finish_reason
    finally:
        stream.cancel()
    all_logprobs = None if shape.spell is None else logprobs
    return shape.whole("".join(parts), finish_reason, answer.usage, all_logprobs)


async def stream_answer(
    shape: AnswerShape, stream: RankStream, text: TextStream, *, with_usage: bool
) -> AsyncIterator[bytes]:
    """The answer as server-sent events: `[DONE]` ends a whole one, an error event one that broke off."""
    answer = AnswerText(shape, text)
    is_first = True
    try:
        async for chunk in stream:
            piece = answer.take(chunk)
            logprobs = answer.take_logprobs(chunk)
            if piece or logprobs or chunk.finish_reason is not None:
                yield sse(shape.chunk(piece, chunk.finish_reason, is_first=is_first, logprobs=logprobs))
                is_first = False
        if with_usage:
            yield sse(shape.usage_chunk(answer.usage))
        yield STREAM_END
    except RequestError as error:
        yield sse(error_json(error))


class AnswerEvents(StreamingResponse):
    """The response of `stream_answer`; the rank is told to stop whatever becomes of it.

    The iteration's own end would not do: a client that hangs up before the first event leaves it never begun.
    """

    def __init__(self, shape: AnswerShape, stream: RankStream, text: TextStream, *, with_usage: bool) -> None:
        events = stream_answer(shape, stream, text, with_usage=with_usage)
        headers = {"x-dp-rank": str(stream.rank)}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Called once, by the server."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.cancel()
