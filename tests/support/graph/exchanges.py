"""Prompts to send to a graph, and what to read of its answers."""

from __future__ import annotations

import random
from typing import Any

import httpx

from tests.support.graph.serve_config import Json


def new_prompt(num_tokens: int = 100) -> list[int]:
    """Random tokens, which no cache holds."""
    return random.choices(range(1000, 40_000), k=num_tokens)


def cached_tokens(answer: httpx.Response) -> int:
    """How many tokens of the prompt came from a cache, as the answer's usage says."""
    number: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return number


def refused(response: httpx.Response, status: int, **expected: Any) -> str:
    """The message of a well-formed error with this status and these fields, in either shape."""
    assert response.status_code == status, response.text
    body: Json = response.json()
    error: Json = body["error"]
    if body.get("type") == "error":
        assert body["request_id"] == response.headers["request-id"]
        details = error.pop("details", {})
        error |= {"param": details.get("param"), "code": details.get("error_code")}
    assert error.keys() == {"message", "type", "param", "code"}
    assert error | expected == error
    message: str = error["message"]
    return message
