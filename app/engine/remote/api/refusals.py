"""A worker's errors as ours: which are the client's, which are the worker's, which the dispatcher retries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from app.errors import (
    EngineFailedError,
    InvalidRequestError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
    RequestFailedError,
)
from app.events.schema import DECODE_FAULTS

MAX_RETRY_AFTER_S = 60
MAX_MESSAGE = 1_000
_CLIENTS_OWN = {400, 413, 415, 422}
"""The worker found fault with the request. Other statuses from 400 on are about how the worker is set up or
how it fares (no such route, a key is needed, a rank is gone), so another rank may do better."""


def refusal(where: str, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> RequestError:
    """What an answer with this status means to the client; `where` is the URL, for our logs and messages."""
    return _refusal(where, status, _details(body), headers or {})


def refusal_in_stream(where: str, error: Any) -> RequestError:
    """What an error event means: its `error` as it came. Without a number, the worker is at fault."""
    details = error if isinstance(error, dict) else {"message": str(error)}
    code = details.get("code")
    return _refusal(where, code if type(code) is int else _status_of(code), details, {})


def _refusal(where: str, status: int, details: dict[str, Any], headers: Mapping[str, str]) -> RequestError:
    message = str(details.get("message") or f"status {status}")[:MAX_MESSAGE]
    param = details.get("param")
    if status == 429:
        return QueueFullError(f"{where}: {message}", retry_after_s=_retry_after_s(headers))
    if details.get("code") == "request_failed":
        return RequestFailedError(f"{where}: {message}")
    if details.get("code") == "context_length_exceeded":
        return PromptTooLongError(message, param=param if isinstance(param, str) else None)
    if status in _CLIENTS_OWN:
        return InvalidRequestError(message, param=param if isinstance(param, str) else None)
    return EngineFailedError(f"{where}: {status}: {message}")


def _status_of(code: object) -> int:
    """kvbeacon's error events carry a code in place of a status."""
    return 429 if code == "queue_full" else 500


def _details(body: bytes) -> dict[str, Any]:
    """The error object of OpenAI's shape, or something like it: `message`, `detail`, or the plain text."""
    try:
        content: Any = msgspec.json.decode(body)
    except DECODE_FAULTS:
        return {"message": body[:MAX_MESSAGE].decode(errors="replace").strip()}
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return {"message": str(error)}
    return {"message": error.get("message") or error.get("detail"), **error}


def _retry_after_s(headers: Mapping[str, str]) -> int:
    given = headers.get("retry-after", "")
    return min(max(1, int(given)), MAX_RETRY_AFTER_S) if given.isascii() and given.isdigit() else 1
