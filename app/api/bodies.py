"""Every body that holds a prompt, and which of them a body is meant to be."""

from __future__ import annotations

from app.api.native.request import GenerateBody, parse_generate
from app.api.openai.requests import ChatRequest, TextRequest, parse_chat, parse_text
from app.api.request_model import read_json
from app.api.responses.request import ResponseRequest, parse_response

PromptBody = ChatRequest | TextRequest | GenerateBody | ResponseRequest


def parse_any(body: bytes) -> PromptBody:
    """The chat in `body` if it has messages, the response's request if it has an input, else by its prompt.

    Raises:
        InvalidRequestError: as `parse_body` does.
    """
    fields = read_json(body)
    names = frozenset(fields) if isinstance(fields, dict) else frozenset()
    if "messages" in names:
        return parse_chat(body)
    if names & {"input", "previous_response_id"} and "prompt" not in names:
        return parse_response(body)
    return parse_generate(body) if names & {"text", "input_ids"} else parse_text(body)
