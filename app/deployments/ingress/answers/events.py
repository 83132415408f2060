"""Server-sent events as an HTTP answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.deployments.ingress.answers.reading import ChunkStream


class AnswerEvents(StreamingResponse):
    """Server-sent events. At their end, however it comes, the request is cancelled on its rank.

    The iteration's own end would not do: when a client disconnects before the first event, it never begins.

    Args:
        events: what is sent, made of `stream`.
        stream: the request's.
        headers: what else the answer has.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        stream: ChunkStream,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        headers = {"x-dp-rank": str(stream.rank), **headers}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Called once, by the server."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.cancel()
