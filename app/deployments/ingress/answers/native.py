"""Turns a rank's tokens into an answer of `/generate`: in one piece, or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator

from app.api.native.answer import Json, NativeSample, NativeShape
from app.api.openai.responses import STREAM_END, error_json, sse
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.errors import RequestError
from app.text.text_stream import TextStream


async def whole_native(shape: NativeShape, stream: RankStream, *texts: TextStream) -> Json | list[Json]:
    """The answer in one piece, with a text per sample.

    Raises:
        RequestError: the rank died or its engine failed before the end.
    """
    samples = _samples(shape, stream, texts)
    try:
        async for chunk in stream:
            samples[chunk.index].take(chunk)
    finally:
        stream.cancel()
    return shape.whole([sample.whole() for sample in samples])


async def stream_native(shape: NativeShape, stream: RankStream, *texts: TextStream) -> AsyncIterator[bytes]:
    """The answer as server-sent events; as in SGLang `[DONE]` ends it also after an error."""
    samples = _samples(shape, stream, texts)
    try:
        async for chunk in stream:
            sample = samples[chunk.index]
            sample.take(chunk)
            yield sse(sample.event())
    except RequestError as error:
        yield sse(error_json(error))
    yield STREAM_END


def _samples(shape: NativeShape, stream: RankStream, texts: tuple[TextStream, ...]) -> list[NativeSample]:
    return [NativeSample(shape, stream.rank, index, text) for index, text in enumerate(texts)]
