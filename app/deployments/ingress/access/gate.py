"""Lets requests in, before their bodies are read: with a key where one is needed, as many as limits allow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.access.access import Access
from app.api.headers import TIMEOUT_HEADER, given_keys, given_timeout_s
from app.deployments.ingress.access.visit import VISIT, Visit, WaitingRoom
from app.deployments.ingress.dispatch.deadline import Deadline
from app.errors import RequestError
from app.settings.ingress import IngressConfig

WITH_BODIES = ("POST", "PUT")
"""Methods of requests that limits are for: what asks for no output costs next to nothing."""
REFUSED_BODY_S = 1.0
"""For the rest of a body whose request is refused."""

AnswerError = Callable[[Request, RequestError], Awaitable[Response]]


class Entrance:
    """What an ingress lets in, by its settings.

    Args:
        config: the settings.

    Raises:
        ConfigError: a file of keys can't be read, or isn't one.
    """

    def __init__(self, config: IngressConfig) -> None:
        self._access = Access(config.access, config.num_ingresses)
        self._waiting = WaitingRoom(config.max_waiting_requests, config.num_ingresses)
        self._timeout_s = config.request_timeout_s

    async def admit(self, request: Request) -> Visit:
        """The request, let in; the caller has it leave.

        Raises:
            RequestError: it isn't let in.
        """
        allowance = await self._access.caller(_route_path(request.scope), given_keys(request.headers))
        if request.method not in WITH_BODIES:
            return Visit()
        return Visit(allowance, self._waiting, self._deadline(request))

    def _deadline(self, request: Request) -> Deadline | None:
        given_s, most_s = given_timeout_s(request.headers), self._timeout_s
        if given_s is not None and (most_s is None or given_s < most_s):
            return Deadline(given_s, TIMEOUT_HEADER)
        return None if most_s is None else Deadline(most_s, "ingress.request_timeout_s")


class Gate:
    """The application, behind it.

    Args:
        app: has the routes.
        entrance: asked for with each request: it may be replaced.
        answer_error: makes an answer of an error, as for one of a route.
    """

    def __init__(self, app: ASGIApp, entrance: Callable[[], Entrance], answer_error: AnswerError) -> None:
        self._app = app
        self._entrance = entrance
        self._answer_error = answer_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Called by the server."""
        if scope["type"] != "http" or scope["method"] == "OPTIONS":  # a browser asks without a key
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            visit = await self._entrance().admit(request)
        except RequestError as error:
            answer = await self._answer_error(request, error)
            if request.method in WITH_BODIES and not await _comes_whole(receive):
                answer.headers["connection"] = "close"  # else it could go on for ever
            await answer(scope, receive, send)
            return
        try:
            await self._app({**scope, VISIT: visit}, receive, send)
        finally:
            visit.leave()


async def _comes_whole(receive: Receive) -> bool:
    """Whether a body that is not read ends soon. A connection that is closed before may lose the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(REFUSED_BODY_S):
            while (await receive()).get("more_body", False):
                pass
            return True
    return False


def _route_path(scope: Scope) -> str:
    """The path as the routes have it: without the prefix under which Serve has the application."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path.startswith(f"{root}/") else path
