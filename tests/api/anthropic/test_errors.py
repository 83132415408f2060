"""Errors in Anthropic's shape, as its client's models have them."""

from __future__ import annotations

import json

import pytest
from anthropic.types.shared import ErrorResponse

from app import errors
from app.api.anthropic.errors import error_event, error_json
from app.api.error_shapes import answer_headers, error_body, is_anthropic

KINDS = {
    errors.InvalidRequestError("m", param="p", code="c"): "invalid_request_error",
    errors.NotAllowedError("m"): "permission_error",
    errors.ModelNameError("m"): "not_found_error",
    errors.RequestTooLargeError("m"): "request_too_large",
    errors.UnsupportedEncodingError("br"): "invalid_request_error",
    errors.QueueFullError("m"): "rate_limit_error",
    errors.InternalError(): "api_error",
    errors.EngineFailedError("m"): "api_error",
    errors.RankDiedError("m"): "api_error",
    errors.NoRankError("m"): "overloaded_error",
}


@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
def test_an_error_has_the_type_that_belongs_to_its_status(error: errors.RequestError) -> None:
    shown = error_json(error, "r1")
    if error.status != 413:  # documented, but in no model of the client
        ErrorResponse.model_validate(shown, strict=True)
    assert (shown["type"], shown["request_id"]) == ("error", "r1")
    inner = shown["error"]
    assert isinstance(inner, dict)
    assert (inner["type"], inner["message"]) == (KINDS[error], error.message)


def test_code_and_field_are_details() -> None:
    refused = errors.InvalidRequestError("m", param="messages.0", code="missing_field")
    assert error_json(refused)["error"] == {
        **{"type": "invalid_request_error", "message": "m"},
        "details": {"error_code": "missing_field", "param": "messages.0"},
    }
    assert "details" not in str(error_json(errors.InvalidRequestError("m")))


def test_claude_code_sees_that_it_must_compact() -> None:
    shown = error_json(errors.PromptTooLongError("the prompt has 9 tokens; the context is 8"))
    assert "prompt is too long: the prompt has 9 tokens; the context is 8" in str(shown)


def test_an_event_is_named() -> None:
    name, data, *rest = error_event(errors.NoRankError("m")).split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: "))["error"]["message"] == "m"


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/v1/messages", True),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/batches/1", True),
        ("/prefix/v1/messages", True),
        ("/v1/messagesx", False),
        ("/v1/chat/completions", False),
        ("/", False),
    ],
)
def test_the_path_says_whose_shape_it_is(path: str, ours: bool) -> None:
    assert is_anthropic(path) == ours
    body = error_body(errors.NoRankError("m"), path, "r1")
    assert ("request_id" in body) == ours
    assert answer_headers(path, "r1") == ({"request-id": "r1"} if ours else {})
