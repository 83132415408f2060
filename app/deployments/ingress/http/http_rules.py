"""What holds for every request, before any route: of headers, methods, paths, and pages of other origins.

header bytes that aren't ASCII        400, which names the header
//v1//models/                         is /v1/models: clients put their base URL and a path together
HEAD                                  as GET, without the body
OPTIONS                               204 with the methods of the path in Allow, or a browser's question
Origin in `ingress.cors_origins`      the headers by which a browser lets a page read the answer (CORS)
below /v1/messages                    `request-id`, by which Anthropic's clients know a request
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.error_shapes import REQUEST_ID_HEADER, answer_headers, error_body
from app.errors import InvalidRequestError
from app.settings.ingress import IngressConfig

EXPOSED_HEADERS = (
    "x-dp-rank",
    "x-request-id",
    "request-id",
    "x-kvbeacon-ignored-fields",
    "x-kvbeacon-cache",
    "retry-after",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
PREFLIGHT_S = 600
"""For how long a browser may remember what it was told."""

_SLASHES = re.compile("/{2,}")


class HttpRules:
    """The application, under these rules.

    Args:
        app: has the routes.
        settings: the ingress's, asked for with each request: they may be replaced.
    """

    def __init__(self, app: ASGIApp, settings: Callable[[], IngressConfig]) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Called by the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": _SLASHES.sub("/", scope["path"]).rstrip("/") or "/"}
        send = _with_headers(answer_headers(scope["path"], _request_id(scope)), send)
        strange = [name for name, value in scope["headers"] if not (name.isascii() and value.isascii())]
        if strange:
            await _refuse(strange[0], scope, send)
            return
        origins = self._settings().cors_origins
        origin = Headers(scope=scope).get("origin")
        if origin is not None and ("*" in origins or origin in origins):
            await self._for_page(origins)(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    def _for_page(self, origins: tuple[str, ...]) -> CORSMiddleware:
        return CORSMiddleware(
            self._answer,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
            max_age=PREFLIGHT_S,
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        allowed = _methods_of(scope) if method == "OPTIONS" else ()
        if allowed:
            headers = [(b"allow", ", ".join(allowed).encode())]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        elif method == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, _bodiless(send))
        else:
            await self._app(scope, receive, send)


def _methods_of(scope: Scope) -> tuple[str, ...]:
    """The methods that the application in `scope` has for its path; none where it has no such path.

    Routes are asked, not read: a router that was included in another one shows no methods.
    """
    found = {
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in scope["app"].routes)
    }
    more = {"OPTIONS", *(("HEAD",) if "GET" in found else ())} if found else set()
    return tuple(sorted(found | more))


def _bodiless(send: Send) -> Send:
    async def send_without_body(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
        elif not message.get("more_body", False):
            await send({"type": "http.response.body", "body": b""})

    return send_without_body


def _request_id(scope: Scope) -> str | None:
    return Headers(scope=scope).get(REQUEST_ID_HEADER)


def _with_headers(added: Mapping[str, str], send: Send) -> Send:
    if not added:
        return send

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(added)
        await send(message)

    return send_with_headers


async def _refuse(name: bytes, scope: Scope, send: Send) -> None:
    shown = name.decode("ascii", "backslashreplace")
    message = f"{shown}: bytes that aren't ASCII; a header has only ASCII characters"
    error = InvalidRequestError(message, param=shown, code="invalid_header")
    body = msgspec.json.encode(error_body(error, scope["path"], _request_id(scope)))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
