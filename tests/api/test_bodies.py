"""Which API a body is meant for, by the fields that it has."""

from __future__ import annotations

import pytest

from app.api.bodies import PromptBody, parse_any
from app.api.native.request import GenerateBody
from app.api.openai.requests import ChatRequest, TextRequest
from app.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"messages": [{"role": "user", "content": "text"}]}', ChatRequest),
        (b'{"prompt": "messages"}', TextRequest),
        (b'{"text": "prompt"}', GenerateBody),
        (b'{"input_ids": [1, 2]}', GenerateBody),
    ],
)
def test_a_body_is_what_its_fields_say(body: bytes, kind: type[PromptBody]) -> None:
    assert isinstance(parse_any(body), kind)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"messages": [], "prompt": "a"}', "messages"),
        (b'{"text": "a", "prompt": "a"}', "prompt = 'a' isn't supported; send text"),
        (b'["messages"]', "the body"),
        (b'{"messages": ', "isn't JSON"),
        (b"\xff", "isn't JSON"),
        (b"[" * 100_000, "isn't JSON"),
        (b"{}", "prompt: required"),
    ],
)
def test_a_body_that_is_none_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_any(body)
