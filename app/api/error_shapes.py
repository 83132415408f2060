"""An error in the shape of the API whose path was asked: Anthropic's for its own, OpenAI's for all others."""

from __future__ import annotations

import re

from app.api.anthropic import errors as anthropic
from app.api.openai.logprobs import Json
from app.api.openai.responses import error_json, sse
from app.errors import RequestError

_ANTHROPIC = re.compile(r"/v1/messages(/|$)")
"""Also below a prefix under which Serve has the application."""

REQUEST_ID_HEADER = "x-request-id"
"""Has a request's id wherever it is; Ray Serve sees to it."""


def is_anthropic(path: str) -> bool:
    """Whether the clients of this path are Anthropic's."""
    return _ANTHROPIC.search(path) is not None


def error_body(error: RequestError, path: str, request_id: str | None) -> Json:
    """The answer's body."""
    return anthropic.error_json(error, request_id) if is_anthropic(path) else error_json(error)


def error_event(error: RequestError, path: str, request_id: str | None) -> bytes:
    """The event that ends a stream."""
    return anthropic.error_event(error, request_id) if is_anthropic(path) else sse(error_json(error))


def answer_headers(path: str, request_id: str | None) -> dict[str, str]:
    """What every answer of a path has besides Ray Serve's own `x-request-id`."""
    return {"request-id": request_id} if request_id is not None and is_anthropic(path) else {}
