"""Fields that this server has no use for: taken, refused or ignored, wherever in a body they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.api import fields as tables
from app.api.anthropic.request import parse_messages
from app.api.bodies import parse_any
from app.api.fields import Meaning
from app.api.native.request import parse_generate
from app.api.openai.requests import parse_chat, parse_text
from app.api.tokens import parse_tokenize
from app.errors import InvalidRequestError
from tests.support.completion_bodies import chat, refusal, text

Parse = Callable[[bytes], Any]

VALUES: list[Any] = ["a", "", 5, 5.5, -1, True, False, [], ["a"], [{"a": 1}], {}, {"a": {"b": [1]}}]
"""Every type of JSON but null, which asks for nothing."""

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "b", "tool_calls": [CALL]},
    ],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "stream": True,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
}
MESSAGES: dict[str, Any] = {
    "max_tokens": 9,
    "system": [{"type": "text", "text": "a"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "redacted_thinking"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "b"}]}
            ],
        },
    ],
    "tools": [{"name": "f", "input_schema": {}}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "adaptive"},
    "output_config": {"format": {"type": "json_schema", "schema": {}}},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": {"type": "all"}}]},
}
LEVELS: list[tuple[dict[str, Any], list[str | int]]] = [
    (CHAT, []),
    (CHAT, ["messages", 0]),
    (CHAT, ["messages", 0, "content", 0]),
    (CHAT, ["messages", 1, "tool_calls", 0]),
    (CHAT, ["messages", 1, "tool_calls", 0, "function"]),
    (CHAT, ["tools", 0]),
    (CHAT, ["tools", 0, "function"]),
    (CHAT, ["stream_options"]),
    (CHAT, ["response_format"]),
    (CHAT, ["response_format", "json_schema"]),
    ({"prompt": "a", "structured_outputs": {"regex": "a"}}, []),
    ({"prompt": "a", "structured_outputs": {"regex": "a"}}, ["structured_outputs"]),
    ({"text": "a", "sampling_params": {"n": 1}}, []),
    ({"text": "a", "sampling_params": {"n": 1}}, ["sampling_params"]),
    (MESSAGES, ["system", 0]),
    (MESSAGES, ["messages", 1]),
    (MESSAGES, ["messages", 1, "content", 0]),
    (MESSAGES, ["messages", 1, "content", 1]),
    (MESSAGES, ["messages", 2, "content", 0]),
    (MESSAGES, ["messages", 2, "content", 0, "content", 0]),
    (MESSAGES, ["tools", 0]),
    (MESSAGES, ["tool_choice"]),
    (MESSAGES, ["thinking"]),
    (MESSAGES, ["output_config"]),
    (MESSAGES, ["output_config", "format"]),
    (MESSAGES, ["context_management"]),
    (MESSAGES, ["context_management", "edits", 0]),
    (MESSAGES, ["context_management", "edits", 0, "keep"]),
]
"""Bodies, and the way to an object in them."""


def with_field(body: dict[str, Any], way: list[str | int], name: str, value: Any) -> bytes:
    """`body` with one more field in the object that `way` leads to."""
    copy: Any = json.loads(json.dumps(body))
    place = copy
    for part in way:
        place = place[part]
    place[name] = value
    return json.dumps(copy).encode()


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize(("body", "way"), LEVELS, ids=[".".join(map(str, way)) for _, way in LEVELS])
def test_an_unknown_field_of_any_type_at_any_level_is_ignored_and_told(
    body: dict[str, Any], way: list[str | int], value: Any
) -> None:
    parsed = parse_any(with_field(body, way, "no_such_field", value))
    path = [part for part in way if isinstance(part, str)]
    assert parsed.ignored_fields == (".".join([*path, "no_such_field"]),)
    assert parsed.model_dump() == parse_any(json.dumps(body).encode()).model_dump()


@pytest.mark.parametrize(("body", "way"), LEVELS, ids=[".".join(map(str, way)) for _, way in LEVELS])
def test_an_unknown_null_asks_for_nothing(body: dict[str, Any], way: list[str | int]) -> None:
    assert parse_any(with_field(body, way, "no_such_field", None)).ignored_fields == ()


def test_a_field_of_many_messages_is_told_once() -> None:
    messages = [{"role": "user", "content": "a", "opts": place} for place in range(50)]
    body = chat(messages=messages, **{"top-p": 0.5, "stream_options": None})
    assert body.ignored_fields == ("messages.opts", "top-p")


TABLES = {
    name: table
    for name, table in vars(tables).items()
    if isinstance(table, dict) and all(isinstance(each, Meaning) for each in table.values())
}
PARSERS: dict[str, tuple[Parse, dict[str, Any], list[str | int]]] = {
    "COMPLETION": (parse_text, {"prompt": "a"}, []),
    "TEXT": (parse_text, {"prompt": "a"}, []),
    "TOKENIZE": (parse_tokenize, {"prompt": "a"}, []),
    "CHAT": (parse_chat, CHAT, []),
    "MESSAGE": (parse_chat, CHAT, ["messages", 0]),
    "PART": (parse_chat, CHAT, ["messages", 0, "content", 0]),
    "TOOL": (parse_chat, CHAT, ["tools", 0]),
    "TOOL_CALL": (parse_chat, CHAT, ["messages", 1, "tool_calls", 0]),
    "STREAM_OPTIONS": (parse_chat, CHAT, ["stream_options"]),
    "RESPONSE_FORMAT": (parse_chat, CHAT, ["response_format"]),
    "STRUCTURED_OUTPUTS": (parse_text, LEVELS[11][0], ["structured_outputs"]),
    "MESSAGES": (parse_messages, MESSAGES, []),
    "ANTHROPIC_MESSAGE": (parse_messages, MESSAGES, ["messages", 1]),
    "ANTHROPIC_BLOCK": (parse_messages, MESSAGES, ["messages", 1, "content", 1]),
    "REDACTED_THINKING": (parse_messages, MESSAGES, ["messages", 1, "content", 0]),
    "ANTHROPIC_TOOL": (parse_messages, MESSAGES, ["tools", 0]),
    "THINKING": (parse_messages, MESSAGES, ["thinking"]),
    "OUTPUT_CONFIG": (parse_messages, MESSAGES, ["output_config"]),
    "NATIVE": (parse_generate, LEVELS[12][0], []),
    "NATIVE_SAMPLING": (parse_generate, LEVELS[12][0], ["sampling_params"]),
}


def test_every_table_is_tested() -> None:
    assert PARSERS.keys() == TABLES.keys()


@pytest.mark.parametrize("table", PARSERS)
def test_every_field_of_a_table_does_what_the_table_says(table: str) -> None:
    parse, body, way = PARSERS[table]
    path = ".".join(map(str, way))
    for name, meaning in TABLES[table].items():
        for value in (None, *meaning.neutral):
            assert parse(with_field(body, way, name, value)).ignored_fields == (), name
        asking = ["something else"]
        if meaning.others == "refused":
            with pytest.raises(InvalidRequestError) as caught:
                parse(with_field(body, way, name, asking))
            assert (caught.value.param, caught.value.code) == (
                f"{path}.{name}".removeprefix("."),
                "unsupported_field",
            )
            assert "None" not in caught.value.message
        else:
            told = parse(with_field(body, way, name, asking)).ignored_fields
            assert len(told) == (meaning.others == "ignored"), name


def test_every_field_of_a_table_is_in_the_documentation() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    names = {name for table in TABLES.values() for name in table}
    assert sorted(name for name in names if f"`{name}`" not in documented) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("store", True), ("service_tier", "flex"), ("prompt_cache_retention", "24h")],
)
def test_what_concerns_the_work_and_not_the_answer_is_told(field: str, value: Any) -> None:
    assert chat(**{field: value}).ignored_fields == text(**{field: value}).ignored_fields == (field,)


CLIENTS: dict[str, dict[str, Any]] = {
    "an echo of openai's answer": {
        "messages": [
            {"role": "user", "content": "a", "name": "Ann", "id": "msg_1"},
            {
                **{"role": "assistant", "content": "b", "refusal": None, "annotations": [], "audio": None},
                **{"function_call": None, "tool_calls": []},
            },
        ]
    },
    "a call, and what came of it": {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "c", "tool_call_id": "1", "name": "f"},
        ]
    },
    "parts with a cache's marks": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
            }
        ]
    },
    "an agent's ids and metadata": {
        "messages": [{"role": "user", "content": "a", "id": "1", "metadata": {"a": 1}}],
        **{"metadata": {"a": "b"}, "user": "u", "prompt_cache_key": "k", "safety_identifier": "s"},
        **{"store": False, "service_tier": "auto", "parallel_tool_calls": True},
    },
    "thoughts": {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "reasoning_content": "c", "reasoning_details": [{"a": 1}]},
            {"role": "user", "content": "d"},
        ]
    },
    "numbers that are all floats": {
        "messages": [{"role": "user", "content": "a"}],
        **{"max_tokens": 8.0, "n": 1.0, "top_k": 40.0, "seed": 7.0, "top_logprobs": 0.0, "priority": 0.0},
        **{"min_tokens": 1.0, "stop_token_ids": [5.0, 6], "routed_dp_rank": 0.0},
    },
    "guidellm": {
        "messages": [{"role": "user", "content": "a"}],
        **{"stream": True, "ignore_eos": True, "stop": None, "max_completion_tokens": 8},
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
}


@pytest.mark.parametrize("client", CLIENTS)
def test_what_clients_send_asks_for_nothing_that_is_not_done(client: str) -> None:
    body = parse_chat(json.dumps(CLIENTS[client]).encode())
    assert body.ignored_fields == ()
    assert body.chat().messages


def test_whole_floats_are_integers() -> None:
    body = parse_chat(json.dumps(CLIENTS["numbers that are all floats"]).encode())
    params = body.engine_params()
    assert (params.max_tokens, params.top_k, params.seed, params.min_tokens) == (8, 40, 7, 1)
    assert (body.n, params.stop_token_ids, body.rank_fields["routed_dp_rank"]) == (1, (5, 6), 0)
    assert text(prompt=[1.0, 2, 3.0]).prompt == [1, 2, 3]
    assert all(type(each) is int for each in text(prompt=[1.0, 2, 3.0]).prompt)
    assert text(logprobs=2.0, max_tokens=3.0).engine_params().logprobs == 2
    for wrong in (1.5, "1", True):
        assert refusal(text, prompt=[1, wrong]).param == "prompt.1"
        assert refusal(text, max_tokens=wrong).message == (
            f"max_tokens = {json.dumps(wrong) if wrong != '1' else repr(wrong)}: an integer is needed"
        )
