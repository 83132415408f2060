"""Bodies of completion requests, parsed, and how a refusal of one reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from app.api.openai.requests import ChatRequest, TextRequest, parse_chat, parse_text
from app.errors import InvalidRequestError


def text(**fields: Any) -> TextRequest:
    """A text completion with these fields besides its prompt."""
    return parse_text(json.dumps({"prompt": "Hello"} | fields).encode())


def chat(**fields: Any) -> ChatRequest:
    """A chat completion with these fields besides its messages."""
    messages = [{"role": "user", "content": "Hello"}]
    return parse_chat(json.dumps({"messages": messages} | fields).encode())


def refusal(parse: Callable[..., object], **fields: Any) -> InvalidRequestError:
    """The error that `parse`, one of the above, raises of these fields."""
    with pytest.raises(InvalidRequestError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value
