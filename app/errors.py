"""Every error that kvbeacon raises on purpose.

KvbeaconError
├── ConfigError                 a setting is wrong; names the field, the value and what is allowed
├── ModelError                  a model can't be served; names the model and what to do
│   ├── ModelNotFoundError      no such folder, name or file, or no network to fetch it
│   ├── ModelIntegrityError     what was fetched isn't what was pinned
│   ├── UnsupportedModelError   an architecture or feature that the engine doesn't have
│   └── InsufficientMemoryError weights plus KV cache don't fit
├── EndpointInUseError          a port that a rank must bind is taken
├── WireError                   a message from a socket breaks the protocol
├── WorkerError                 a worker by URL can't be reached, or its answer can't be used
│   └── WorkerSlowError         it doesn't answer in time
├── RankCallError               a call to a rank broke off
│   ├── RankGoneError           its replica is gone
│   │   └── RankUnreachableError or cut off: it may come back
│   └── RankFailedError         its own code failed
└── RequestError                one request can't be served; carries its HTTP status
    ├── InvalidRequestError     400: a field of the request is wrong
    │   ├── LiveRequestIdError  400: another request of the rank has its id, and hasn't ended
    │   └── UnknownRankError    400: the rank that it names is none that there is, or may be
    ├── PromptTooLongError      400: longer than the context or than the KV cache can ever hold
    ├── NotAllowedError         403: this deployment's config doesn't allow it
    ├── ModelNameError          404: the request names a model that isn't served here
    ├── UnknownDecisionError    404: no router remembers the request
    ├── RequestTooLargeError    413: the body is larger than this server reads
    ├── UnsupportedEncodingError 415: the body is compressed in another way than gzip
    ├── QueueFullError          429: the rank's queue is full; says when to try again
    ├── RequestFailedError      500: the engine could not compute this request
    ├── EngineFailedError       500: the rank's engine broke, or can serve nothing now
    ├── InternalError           500: a fault of this server's own
    ├── RankDiedError           502: the rank was lost while it answered, and no other could go on
    ├── IngressDiedError        502: the ingress died while it answered
    └── NoRankError             503: no rank can take the request now
        ├── NoRankAliveError    503: there is none at all
        └── NoRouterError       503: no router answers, so no rank can be chosen
"""

from __future__ import annotations

import json
from typing import Any

MAX_SHOWN = 80
"""Characters of a client's value in a message to that client."""

_ENCODER = json.JSONEncoder(ensure_ascii=False)


class KvbeaconError(Exception):
    """Base of every error of this package."""


class ConfigError(KvbeaconError):
    """A setting is wrong. The message names the field, the value and what is allowed."""


class ModelError(KvbeaconError):
    """A model can't be served. The message names the model and what to do."""


class ModelNotFoundError(ModelError):
    """The model's folder or a file in it doesn't exist, or can't be fetched."""


class ModelIntegrityError(ModelError):
    """A fetched file's sha256 isn't the pinned one."""


class UnsupportedModelError(ModelError):
    """The model's architecture, or a feature of it, isn't built here."""


class InsufficientMemoryError(ModelError):
    """Weights plus KV cache don't fit the device."""


class EndpointInUseError(KvbeaconError):
    """A port that a rank must bind is taken. The message names port and rank."""


class WireError(KvbeaconError):
    """A message from a socket breaks the protocol."""


class WorkerError(KvbeaconError):
    """A worker by URL can't be reached, or its answer can't be used. The message says which and why."""


class WorkerSlowError(WorkerError):
    """A worker by URL doesn't answer in time: it may be busy, or hang."""


class RankCallError(KvbeaconError):
    """A call to a rank broke off. The message is the transport's."""


class RankGoneError(RankCallError):
    """The replica that was called is gone, or none has started yet: Ray replaces it."""


class RankUnreachableError(RankGoneError):
    """The replica's process can't be reached now; whether it is gone isn't known yet."""


class RankFailedError(RankCallError):
    """The rank's own code raised an error; the rank is still there."""


class RequestError(KvbeaconError):
    """One request can't be served.

    Attributes:
        message: what was given and what is allowed.
        param: the request's field at fault, if one is.
        code: a machine-readable reason, as in OpenAI's error object.
        retry_after_s: whole seconds after which a retry makes sense (HTTP's Retry-After), if one does.
        ignored_fields: of a body that was refused, the fields that were ignored before its fault was found.
    """

    status = 400
    type = "invalid_request_error"
    ignored_fields: tuple[str, ...] = ()

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s: int | None = None


class InvalidRequestError(RequestError):
    """A field of the request is wrong."""


class LiveRequestIdError(InvalidRequestError):
    """The rank has a request with this id already, which hasn't ended."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request_id = {request_id!r}: a live request has this id")


class NotAllowedError(RequestError):
    """This deployment's config doesn't allow it. The message names the setting."""

    status = 403

    def __init__(self, message: str) -> None:
        super().__init__(message, code="not_allowed")


class UnknownRankError(InvalidRequestError):
    """The rank that the request names is none that there is, or may be.

    Attributes:
        allowed: what may stand in its place, for people to read.
    """

    allowed = ""

    @classmethod
    def of(cls, rank: int, dp_size: int, field: str = "routed_dp_rank") -> UnknownRankError:
        """Rank `rank`, named by `field`, where there are or may be `dp_size`."""
        error = cls(f"{field} = {shown(rank)}: allowed are 0 to {dp_size - 1}", param=field)
        error.allowed = f"0 to {dp_size - 1}"
        return error

    def named(self, rank: int, field: str) -> UnknownRankError:
        """The same, with the field by which the client named the rank."""
        error = type(self)(f"{field} = {shown(rank)}: allowed are {self.allowed}", param=field)
        error.allowed = self.allowed
        return error


class PromptTooLongError(RequestError):
    """The prompt (with its output) can't fit the context or the KV cache, ever."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class ModelNameError(RequestError):
    """The request names a model that isn't served here."""

    status = 404

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model", code="model_not_found")


class UnknownDecisionError(RequestError):
    """No router remembers a decision for this request."""

    status = 404

    def __init__(self, request_id: str) -> None:
        shown = request_id if len(request_id) <= 64 else request_id[:61] + "..."
        message = f"request_id = {shown!r}: no router remembers it; known are the ids of the last answers"
        super().__init__(message, param="request_id", code="decision_not_found")


class RequestTooLargeError(RequestError):
    """The request's body is larger than this server reads."""

    status = 413

    def __init__(self, message: str) -> None:
        super().__init__(message, code="request_too_large")


class UnsupportedEncodingError(RequestError):
    """The request's body is compressed in a way that this server doesn't read."""

    status = 415

    def __init__(self, encoding: str) -> None:
        message = f"Content-Encoding = {shown(encoding)}: allowed are 'gzip' and none"
        super().__init__(message, param="Content-Encoding", code="unsupported_encoding")


class QueueFullError(RequestError):
    """The rank's queue is full."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, code="queue_full")
        self.retry_after_s = retry_after_s


class RequestFailedError(RequestError):
    """The engine could not compute this request; another rank couldn't either."""

    status = 500
    type = "server_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="request_failed")


class EngineFailedError(RequestError):
    """The rank's engine broke, with this request or before it, or can serve nothing for now."""

    status = 500
    type = "server_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="engine_failed")


class InternalError(RequestError):
    """A fault of this server's own, which its log describes."""

    status = 500
    type = "server_error"

    def __init__(self) -> None:
        super().__init__("internal error; the server's log has more", code="internal_error")


class RankDiedError(RequestError):
    """The rank was lost while it answered, and no other could go on. The message says why not."""

    status = 502
    type = "server_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="rank_died")


class IngressDiedError(RequestError):
    """The ingress died while it answered; Ray's proxy says so in its place."""

    status = 502
    type = "server_error"

    def __init__(self) -> None:
        super().__init__("the ingress died while it answered; try again", code="ingress_died")
        self.retry_after_s = 1


class NoRankError(RequestError):
    """No rank can take the request now."""

    status = 503
    type = "server_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="no_rank_available")
        self.retry_after_s = 1


class NoRankAliveError(NoRankError):
    """There is no rank at all: none has started yet, or all have stopped."""


class NoRouterError(NoRankError):
    """No router answers, so no rank can be chosen."""


def shown(value: Any) -> str:
    """A client's value for a message to that client: as JSON, no longer than a line."""
    if isinstance(value, str):
        return repr(_cut(value))
    given = ""
    try:
        # Piece by piece: a value may have millions of entries.
        for piece in _ENCODER.iterencode(value):
            given += piece
            if len(given) > MAX_SHOWN:
                break
    except (TypeError, ValueError):
        given = repr(value)
    return _cut(given)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
