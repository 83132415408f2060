"""Turns a rank's tokens into a message of Anthropic's API: in one piece, or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from app.api.anthropic.answer import MESSAGE_STOP, PING, MessageContent, MessageShape, usage_json
from app.api.anthropic.errors import Json, error_event
from app.api.anthropic.events import sse
from app.api.openai.responses import Usage
from app.deployments.ingress.answers.reading import SampleReader, UsageCounter
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.errors import RequestError
from app.generation import TokenChunk
from app.text.output.formats import OutputFormat
from app.text.text_stream import TextStream


class _Message:
    """One answer while its tokens come."""

    def __init__(self, shape: MessageShape, output: OutputFormat, text: TextStream) -> None:
        self._shape = shape
        self._text = text
        self._reader = SampleReader(text, output.parser())
        self._content = MessageContent(shape)
        self._counter = UsageCounter()
        self._finish_reason: str | None = None

    def take(self, chunk: TokenChunk) -> Iterator[Json]:
        """The events that are certain after `chunk`, at the end those of the content's end too."""
        self._counter.take(chunk)
        _, parts = self._reader.take(chunk)
        yield from self._content.take(parts)
        if chunk.finish_reason is not None:
            self._finish_reason = chunk.finish_reason
            yield from self._content.end()

    def last_delta(self) -> Json:
        """The event that says why it ended, and all counts."""
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": self._text.matched}
        return {"type": "message_delta", "delta": delta, "usage": usage_json(self._counter.usage)}

    def whole(self) -> Json:
        """The message. It is over."""
        usage = usage_json(self._counter.usage)
        return self._shape.message(self._content.blocks, usage, self._stop_reason(), self._text.matched)

    def _stop_reason(self) -> str:
        matched, calls = self._text.matched is not None, self._content.has_calls
        return self._shape.stop_reason(self._finish_reason, self._counter.usage, matched=matched, calls=calls)


async def whole_message(
    shape: MessageShape, output: OutputFormat, stream: RankStream, text: TextStream
) -> Json:
    """The answer in one piece.

    Raises:
        RequestError: the rank died or its engine failed before the end.
    """
    message = _Message(shape, output, text)
    try:
        async for chunk in stream:
            for _ in message.take(chunk):
                pass
    finally:
        stream.cancel()
    return message.whole()


async def stream_message(
    shape: MessageShape,
    output: OutputFormat,
    stream: RankStream,
    text: TextStream,
    *,
    request_id: str | None = None,
) -> AsyncIterator[bytes]:
    """The answer as server-sent events; an error event ends an incomplete one.

    Args:
        shape: how it is written.
        output: how it is read.
        stream: the rank's tokens.
        text: makes text of them.
        request_id: as HTTP knows the request, for an error.
    """
    message = _Message(shape, output, text)
    usage = usage_json(Usage(stream.num_prompt_tokens, stream.num_cached_tokens, 0))
    yield sse({"type": "message_start", "message": shape.message([], usage, None, None)}) + sse(PING)
    try:
        async for chunk in stream:
            events = b"".join(map(sse, message.take(chunk)))
            if events:
                yield events
        yield sse(message.last_delta()) + sse(MESSAGE_STOP)
    except RequestError as error:
        yield error_event(error, request_id)
