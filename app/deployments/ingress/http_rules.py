"""What holds for every request, before any route: of headers, methods, paths, and pages of other origins.

header bytes that aren't ASCII        400, which names the header
//v1//models/                         is /v1/models: clients put their base URL and a path together
HEAD                                  as GET, without the body
OPTIONS                               204 with the methods of the path in Allow, or a browser's question
Origin in `ingress.cors_origins`      the headers by which a browser lets a page read the answer (CORS)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from ray import serve
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.openai.responses import error_json
from app.errors import InvalidRequestError
from app.settings import IngressConfig

EXPOSED_HEADERS = ("x-dp-rank", "x-request-id", "x-kvbeacon-ignored-fields", "retry-after")
METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS")
PREFLIGHT_S = 600
"""For how long a browser may remember what it was told."""

_SLASHES = re.compile("/{2,}")


def replica_settings() -> IngressConfig:
    """Those of the ingress in whose process this is. The middleware is made before there are any."""
    ingress: Any = serve.get_replica_context().servable_object
    settings: IngressConfig = ingress.http_settings
    return settings


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
        strange = [name for name, value in scope["headers"] if not (name.isascii() and value.isascii())]
        if strange:
            await _refuse(strange[0], send)
            return
        scope = {**scope, "path": _SLASHES.sub("/", scope["path"]).rstrip("/") or "/"}
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
        if method == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, _Bodiless(send, method).send)
        elif method == "OPTIONS":
            await self._app(scope, receive, _Bodiless(send, method).send)
        else:
            await self._app(scope, receive, send)


class _Bodiless:
    """Passes on an answer without its body. One to OPTIONS that no route has becomes a list of methods."""

    def __init__(self, send: Send, method: str) -> None:
        self._send = send
        self._method = method
        self._drops_body = method == "HEAD"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._method == "OPTIONS" and message["status"] == 405:
                self._drops_body = True
                message = _methods_of(message)
            await self._send(message)
        elif not self._drops_body:
            await self._send(message)
        elif not message.get("more_body", False):
            await self._send({"type": "http.response.body", "body": b""})


def _methods_of(refusal: Message) -> Message:
    """A 405 as an answer to OPTIONS."""
    allowed = {each.strip() for each in Headers(raw=refusal["headers"]).get("allow", "").split(",")}
    allowed |= {"OPTIONS"} | ({"HEAD"} if "GET" in allowed else set())
    headers = MutableHeaders()
    headers["allow"] = ", ".join(sorted(filter(None, allowed)))
    return {"type": "http.response.start", "status": 204, "headers": headers.raw}


async def _refuse(name: bytes, send: Send) -> None:
    shown = name.decode("ascii", "backslashreplace")
    message = f"{shown}: bytes that aren't ASCII; a header has only ASCII characters"
    body = msgspec.json.encode(error_json(InvalidRequestError(message, param=shown, code="invalid_header")))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
