"""Errors as Anthropic's API has them, whole and as an event of a stream.

Source: https://docs.anthropic.com/en/api/errors, and the models of its Python client.
"""

from __future__ import annotations

from app.api.anthropic.events import sse
from app.errors import RequestError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_TOO_LONG = "prompt is too long"
"""By these words in a message Claude Code knows that it must compact its conversation."""

Json = dict[str, object]


def error_json(error: RequestError, request_id: str | None = None) -> Json:
    """Anthropic's error object. Code and field are in its `details`."""
    other = "invalid_request_error" if error.status < 500 else "api_error"
    is_too_long = error.code == "context_length_exceeded"
    shown: Json = {
        "type": _TYPES.get(error.status, other),
        "message": f"{_TOO_LONG}: {error.message}" if is_too_long else error.message,
    }
    details = {"error_code": error.code, "param": error.param}
    if any(details.values()):
        shown["details"] = {name: value for name, value in details.items() if value is not None}
    return {"type": "error", "error": shown, "request_id": request_id}


def error_event(error: RequestError, request_id: str | None = None) -> bytes:
    """The event that ends a stream which can't go on."""
    return sse(error_json(error, request_id))
