"""Every body that holds a prompt, and which of them a body is meant to be."""

from __future__ import annotations

from pydantic_core import from_json

from app.api.native.request import GenerateBody, parse_generate
from app.api.openai.requests import ChatRequest, TextRequest, parse_chat, parse_text

PromptBody = ChatRequest | TextRequest | GenerateBody


def parse_any(body: bytes) -> PromptBody:
    """The chat in `body` if it has messages, the native request if it has a text, else the text completion.

    Raises:
        InvalidRequestError: as `parse_body` does.
    """
    fields = _field_names(body)
    if "messages" in fields:
        return parse_chat(body)
    return parse_generate(body) if fields & {"text", "input_ids"} else parse_text(body)


def _field_names(body: bytes) -> frozenset[str]:
    try:
        fields = from_json(body)
    except ValueError:
        return frozenset()
    return frozenset(fields) if isinstance(fields, dict) else frozenset()
