"""Every body that holds a prompt, and which of them a body is meant to be."""

from __future__ import annotations

from app.api.native.request import GenerateBody, parse_generate
from app.api.openai.requests import ChatRequest, TextRequest, parse_chat, parse_text
from app.api.request_model import read_json

PromptBody = ChatRequest | TextRequest | GenerateBody


def parse_any(body: bytes) -> PromptBody:
    """The chat in `body` if it has messages, the native request if it has a text, else the text completion.

    Raises:
        InvalidRequestError: as `parse_body` does.
    """
    fields = read_json(body)
    names = frozenset(fields) if isinstance(fields, dict) else frozenset()
    if "messages" in names:
        return parse_chat(body)
    return parse_generate(body) if names & {"text", "input_ids"} else parse_text(body)
