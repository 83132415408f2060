"""The OpenAPI document: it is valid, has every route, and what clients really send and get keeps to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest
from openapi_spec_validator import validate
from starlette.testclient import TestClient

from app.api.anthropic.request import parse_count, parse_messages
from app.api.native.request import parse_generate
from app.api.openai.prompts import parse_texts
from app.api.openai.requests import parse_chat
from app.api.openai.responses import AnswerShape, Choice, Usage, error_json
from app.api.responses.answer import ResponseShape, ResponseUsage
from app.api.responses.request import parse_response
from app.api.tokens import detokenize_answer, parse_detokenize, parse_tokenize, tokenize_answer
from app.deployments.ingress.access.gate import Entrance
from app.deployments.ingress.api import build_api
from app.deployments.ingress.service import Service
from app.errors import InvalidRequestError, QueueFullError
from app.settings.ingress import IngressConfig

SETTINGS = IngressConfig()
API = build_api(
    cast(Service, SimpleNamespace(config=SimpleNamespace(ingress=SETTINGS), entrance=Entrance(SETTINGS)))
)
"""Routes need no more of a service to be described."""
DOCUMENT: Any = API.openapi()
HELLO = [{"role": "user", "content": "Hello"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": None}}


def routes() -> Iterator[tuple[str, str]]:
    """Path and method of all routes of the application's routers."""
    included: list[Any] = [route for route in API.routes if hasattr(route, "original_router")]
    assert len(included) == len(API.routes) > 3, "every route comes by a router"
    for router in included:
        for route in router.original_router.routes:
            for method in route.methods - {"HEAD"}:
                yield re.sub(r":path\}", "}", route.path), method.lower()


def fits(value: Any, name: str) -> bool:
    """Whether `value` keeps to the schema of this name."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    # Through JSON, as it travels.
    return bool(jsonschema.Draft202012Validator(schema).is_valid(json.loads(json.dumps(value))))


def test_it_is_a_valid_openapi_document() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    validate(DOCUMENT)


def test_every_route_is_in_it_with_its_body_and_its_errors() -> None:
    found = {(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert found == set(routes())
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"].endswith("."), path
            assert "default" in operation["responses"], path
            takes_body = method in ("post", "put") and path != "/flush_cache"
            assert ("requestBody" in operation) == takes_body, f"{method} {path}"
            assert "422" not in operation["responses"], path


def test_every_reference_leads_somewhere() -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(DOCUMENT)))
    assert names - DOCUMENT["components"]["schemas"].keys() == set()


Parse = Callable[[bytes], Any]

BODIES: list[tuple[str, Parse, dict[str, Any]]] = [
    ("ChatRequest", parse_chat, {"messages": HELLO}),
    (
        "ChatRequest",
        parse_chat,
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "a", "cache_control": {"a": 1}}]},
                {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None},
                {"role": "tool", "tool_call_id": "call_1", "content": "b", "name": "f"},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
                {"role": "user", "content": "c", "opts": {"d": 1}},
            ],
            **{"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            **{"max_tokens": 8.0, "stop": None, "top_k": 40, "seed": 7, "logit_bias": {"5": -1}, "n": 2},
            **{"stream": True, "stream_options": {"include_usage": True}, "parallel_tool_calls": None},
        },
    ),
    (
        "ChatRequest",
        parse_chat,
        {
            "messages": HELLO,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"a": 1}}},
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ),
    ("TextRequest", parse_texts, {"prompt": "Hello", "max_tokens": 0, "echo": True, "logprobs": 1}),
    ("TextRequest", parse_texts, {"prompt": [5, 6.0], "guided_choice": ["a"]}),
    ("TextRequest", parse_texts, {"prompt": ["a", [5, 6]], "stop": ["a", "b"], "cache_salt": "c"}),
    ("GenerateBody", parse_generate, {"text": "a", "sampling_params": {"max_new_tokens": None}}),
    ("GenerateBody", parse_generate, {"input_ids": [[5]], "sampling_params": {"regex": "a"}, "rid": "1"}),
    ("TokenizeText", parse_tokenize, {"prompt": ["a", "b"], "add_special_tokens": False}),
    ("TokenizeChat", parse_tokenize, {"messages": HELLO, "return_token_strs": True, "tools": [TOOL]}),
    ("DetokenizeBody", parse_detokenize, {"tokens": [[5], [6, 7]]}),
    ("ResponseRequest", parse_response, {"input": "Hello", "store": None}),
    (
        "ResponseRequest",
        parse_response,
        {
            "input": [
                *HELLO,
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "x"},
            ],
            "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}],
            "tool_choice": {"type": "custom", "name": "g"},
            "reasoning": {"effort": None, "summary": "auto"},
        },
    ),
    ("MessagesRequest", parse_messages, {"max_tokens": 5, "messages": HELLO, "system": "a", "opts": 1}),
    ("CountRequest", parse_count, {"messages": HELLO, "system": [{"type": "text", "text": "a"}]}),
]


@pytest.mark.parametrize(
    ("name", "parse", "body"), BODIES, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(BODIES)]
)
def test_what_is_taken_keeps_to_it(name: str, parse: Parse, body: dict[str, Any]) -> None:
    parse(json.dumps(body).encode())
    assert fits(body, name)


@pytest.mark.parametrize(
    ("name", "parse", "body"),
    [
        ("ChatRequest", parse_chat, {}),
        ("ChatRequest", parse_chat, {"messages": []}),
        ("ChatRequest", parse_chat, {"messages": HELLO, "temperature": 3}),
        ("ChatRequest", parse_chat, {"messages": [{"role": "king", "content": "a"}]}),
        ("TextRequest", parse_texts, {"prompt": [5, "a"]}),
        ("TextRequest", parse_texts, {"prompt": "a", "logprobs": 21}),
        ("DetokenizeBody", parse_detokenize, {"tokens": ["a"]}),
    ],
)
def test_what_is_refused_does_not(name: str, parse: Parse, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        parse(json.dumps(body).encode())
    assert not fits(body, name) or "a" in body.get("prompt", ())


def test_answers_keep_to_it() -> None:
    usage = Usage(5, 4, 2, {"tail_tokens": 1})
    chat, text = AnswerShape("chat", "1", "m"), AnswerShape("text", "1", "m", prompt_token_ids=[[5]])
    message = {"content": None, "tool_calls": [CALL]}
    assert fits(
        chat.whole([Choice("", "tool_calls", message=message), Choice("a", "stop")], usage), "ChatCompletion"
    )
    assert fits(chat.chunk("a", is_first=True), "ChatCompletionChunk")
    assert fits(chat.end("stop"), "ChatCompletionChunk")
    assert fits(chat.usage_chunk(usage), "ChatCompletionChunk")
    assert fits(text.whole([Choice("a", "length", token_ids=[6])], usage), "TextCompletion")
    assert fits(text.chunk("a", is_first=False), "TextCompletion")
    assert not fits(text.chunk("a", is_first=False), "ChatCompletionChunk")
    echo = parse_response(b'{"input": "a"}').echo()
    response = ResponseShape("1", "m", echo)
    item = {"id": "msg_1", "type": "message", "status": "completed"}
    for each in (response.begun(), response.whole([item], ResponseUsage(usage), "stop")):
        assert fits(each, "Response")
    for error in (InvalidRequestError("a", param="b", code="c"), QueueFullError("d")):
        assert fits(error_json(error), "Error")
    for is_list in (True, False):
        tokens = tokenize_answer(
            [[5, 6]], is_list=is_list, max_model_len=9, entries_of=lambda ids: ["a"] * len(ids)
        )
        assert fits(tokens, "Tokens")
        assert fits(detokenize_answer(["a"], is_list=is_list), "Text")


def test_the_page_has_every_route_and_loads_nothing() -> None:
    with TestClient(API) as client:
        assert client.get("/openapi.json").json() == json.loads(json.dumps(DOCUMENT))
        answer = client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = answer.text
    assert all(f"<code>{path}</code>" in page for path in DOCUMENT["paths"])
    assert "<script" not in page
    assert re.findall(r"""(?:src|href)=["'](?!#)([^"']*)""", page) == ["openapi.json"]
    for name in set(re.findall(r'href="#([^"]+)"', page)):
        assert f'id="{name}"' in page
