"""What Ray's HTTP proxy says when an ingress dies: our JSON errors instead of a text, or a broken connection.

The proxy imports `middlewares` where its environment says so, as `make serve` does:
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=app.deployments.proxy_errors:middlewares`. Ray Serve (2.60) answers
nothing when the replica that answers dies, and leaves the rest to its HTTP server.
"""

from __future__ import annotations

import msgspec
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.error_shapes import REQUEST_ID_HEADER, answer_headers, error_body, error_event
from app.api.openai.responses import error_headers
from app.errors import IngressDiedError


def middlewares() -> list[Middleware]:
    """For Ray's proxy."""
    return [Middleware(WholeAnswers)]


class WholeAnswers:
    """Completes an answer that the application left incomplete: with an error, where one can be understood.

    An answer that hasn't begun becomes a JSON error. A stream of events ends with an error event. Anything
    else stays incomplete, which its length tells.

    Args:
        app: answers, or not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection. Called by the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        await self._app(scope, receive, answer.send)
        await answer.complete()


class _Answer:
    """How far one answer has come."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._start: Message | None = None
        self._is_whole = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            self._is_whole = not message.get("more_body", False)
        await self._send(message)

    async def complete(self) -> None:
        if self._is_whole:
            return
        error = IngressDiedError()
        where = (self._scope["path"], Headers(scope=self._scope).get(REQUEST_ID_HEADER))
        if self._start is None:
            headers = {"content-type": "application/json", **error_headers(error), **answer_headers(*where)}
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": error.status, "headers": raw})
            await self._send_last(msgspec.json.encode(error_body(error, *where)))
        elif Headers(raw=self._start["headers"]).get("content-type", "").startswith("text/event-stream"):
            await self._send_last(error_event(error, *where))

    async def _send_last(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body})
