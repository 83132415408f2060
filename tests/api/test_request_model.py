"""Bodies that are no request at all, and how much of a value a refusal shows."""

from __future__ import annotations

import pytest

from app.api.openai.requests import ChatRequest, TextRequest
from app.api.request_model import parse_body
from app.errors import InvalidRequestError
from tests.support.completion_bodies import refusal, text


@pytest.mark.parametrize("body", [b"", b"{", b"{'prompt': 1}", b'{"prompt": "\\ud800"}', b"\xff"])
def test_a_body_that_is_not_json(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="JSON"):
        parse_body(TextRequest, body)


@pytest.mark.parametrize("body", [b"[]", b"5", b"null"])
def test_a_body_that_is_no_object(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="body"):
        parse_body(TextRequest, body)


def test_what_is_required() -> None:
    for model, field in ((TextRequest, "prompt"), (ChatRequest, "messages")):
        with pytest.raises(InvalidRequestError, match=f"{field}: required") as caught:
            parse_body(model, b"{}")
        assert (caught.value.param, caught.value.code) == (field, "missing_field")


def test_a_long_value_is_shown_in_part() -> None:
    assert len(refusal(text, temperature="x" * 10_000).message) < 300
