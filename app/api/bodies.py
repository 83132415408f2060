"""Every body that holds a prompt, and which of them a body is meant to be."""

from __future__ import annotations

from typing import Any

from app.api.anthropic.request import MessagesRequest, parse_count
from app.api.native.request import GenerateBody, parse_generate
from app.api.openai.requests import ChatRequest, TextRequest, parse_chat, parse_text
from app.api.request_model import read_json
from app.api.responses.request import ResponseRequest, parse_response

PromptBody = ChatRequest | TextRequest | GenerateBody | ResponseRequest | MessagesRequest

_ANTHROPIC = frozenset(("system", "stop_sequences", "thinking", "output_config", "context_management"))


def parse_any(body: bytes) -> PromptBody:
    """The chat in `body` if it has messages, the response's request if it has an input, else by its prompt.

    A chat with a field that only Anthropic's have, or with tools in their form, is one of theirs.

    Raises:
        InvalidRequestError: as `parse_body` does.
    """
    fields = read_json(body)
    names = frozenset(fields) if isinstance(fields, dict) else frozenset()
    if "messages" in names:
        return parse_count(body) if names & _ANTHROPIC or _has_anthropic_tools(fields) else parse_chat(body)
    if names & {"input", "previous_response_id"} and "prompt" not in names:
        return parse_response(body)
    return parse_generate(body) if names & {"text", "input_ids"} else parse_text(body)


def _has_anthropic_tools(fields: dict[str, Any]) -> bool:
    tools = fields.get("tools")
    first = tools[0] if isinstance(tools, list) and tools else None
    return isinstance(first, dict) and "input_schema" in first
