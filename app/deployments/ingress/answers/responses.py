"""Turns a rank's tokens into a response: in one piece, or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

from app.api.openai.logprobs import AnswerLogprobs, Json
from app.api.responses.answer import EventWriter, ResponseShape, ResponseUsage
from app.api.responses.output import OutputItems
from app.deployments.ingress.answers.completions import MISTRAL_ID_CHARS, MissedTokens
from app.deployments.ingress.answers.reading import SampleReader, UsageCounter
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.errors import RequestError
from app.generation import TokenChunk
from app.text.text_stream import TextStream

Keep = Callable[[Json], None]
"""Takes a response that has ended, before its client has it."""


class _Output:
    """A response's items and token counts while its tokens come."""

    def __init__(self, shape: ResponseShape, text: TextStream) -> None:
        self._reader = SampleReader(text, shape.output.parser())
        self._counter = UsageCounter()
        self._logprobs = None if shape.spell is None else AnswerLogprobs("chat", shape.spell)
        self._reasoning_tokens = 0
        self.finish_reason: str | None = None
        self.items = OutputItems(
            shape.request_id,
            shape.offers,
            id_chars=MISTRAL_ID_CHARS if shape.output.calls == "mistral" else None,
            packs_thoughts=shape.packs_thoughts,
        )

    def take(self, chunk: TokenChunk) -> Iterator[Json]:
        """The events that are certain after `chunk`, at the end all of them."""
        was_thinking = self.items.is_thinking
        _, parts = self._reader.take(chunk)
        self._counter.take(chunk)
        logprobs = [] if self._logprobs is None else self._logprobs.take(chunk)
        yield from self.items.take(parts, logprobs)
        # A chunk in which thoughts begin or end has a mark too, so it counts as thoughts.
        if was_thinking or self.items.is_thinking:
            self._reasoning_tokens += len(chunk.token_ids)
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason
            yield from self.items.end("incomplete" if chunk.finish_reason == "length" else "completed")

    def usage(self, missed: MissedTokens) -> ResponseUsage:
        """The counts, at the end."""
        usage = replace(self._counter.usage, missed_tokens=missed())
        return ResponseUsage(usage, self._reasoning_tokens)


async def whole_response(
    shape: ResponseShape, stream: RankStream, text: TextStream, *, missed: MissedTokens, keep: Keep
) -> Json:
    """The response in one piece.

    Raises:
        RequestError: the rank died or its engine failed before the end.
    """
    output = _Output(shape, text)
    try:
        async for chunk in stream:
            # The events are what moves the items on.
            for _ in output.take(chunk):
                pass
    finally:
        stream.cancel()
    response = shape.whole(output.items.items, output.usage(missed), output.finish_reason)
    keep(response)
    return response


async def stream_response(
    shape: ResponseShape, stream: RankStream, text: TextStream, *, missed: MissedTokens, keep: Keep
) -> AsyncIterator[bytes]:
    """The response as server-sent events. The last says how it ended: completed, incomplete or failed."""
    output = _Output(shape, text)
    written = EventWriter().written
    for name in ("created", "in_progress"):
        yield written({"type": f"response.{name}", "response": shape.begun()})
    try:
        async for chunk in stream:
            for event in output.take(chunk):
                yield written(event)
        response = shape.whole(output.items.items, output.usage(missed), output.finish_reason)
        keep(response)
    except RequestError as error:
        for event in output.items.break_off():
            yield written(event)
        response = shape.failed(output.items.items, error)
    yield written({"type": f"response.{response['status']}", "response": response})
