"""The body of POST /v1/responses: how it becomes a chat, and what is refused by which name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.api.responses.request import ResponseRequest, parse_response
from app.errors import InvalidRequestError
from app.text.chat_prompt import ChatMessage

USER = {"role": "user", "content": "a"}
FUNCTION = {"type": "function", "name": "f"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}


class Stored:
    """Two responses, of which the second goes on from the first."""

    def conversation(self, response_id: str) -> list[dict[str, Any]]:
        if response_id != "resp_2":
            raise InvalidRequestError("not stored", param="previous_response_id")
        said = {"type": "output_text", "text": "said", "annotations": [], "logprobs": []}
        return [
            {"type": "message", "role": "user", "content": "asked", "id": "in_1"},
            {"type": "message", "role": "assistant", "content": [said], "id": "msg_1", "status": "completed"},
        ]

    def item(self, item_id: str) -> dict[str, Any] | None:
        return next((each for each in self.conversation("resp_2") if each["id"] == item_id), None)


def parsed(stored: Stored | None = None, **fields: Any) -> ResponseRequest:
    return parse_response(json.dumps({"input": "a"} | fields).encode(), stored)


def refusal(stored: Stored | None = None, **fields: Any) -> InvalidRequestError:
    """The error of a body with these fields, or of the chat or the calls in it."""

    def read() -> None:
        body = parsed(stored, **fields)
        body.chat()
        body.wish()
        body.engine_params()

    with pytest.raises(InvalidRequestError) as caught:
        read()
    return caught.value


def test_a_string_is_a_users_message_and_instructions_come_first() -> None:
    chat = parsed(input="Hi", instructions="Be brief.").chat()
    assert chat.messages == [ChatMessage("system", ("Be brief.",)), ChatMessage("user", ("Hi",))]
    assert [message.content_field for message in chat.messages] == ["instructions", "input"]


def test_items_of_one_turn_are_one_message() -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        USER,
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "So:", "annotations": []}]},
        CALL,
        {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c", "output": "18"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "y"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "Yes."},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "In short"}]},
        CALL,
        {"type": "reasoning", "summary": [], "encrypted_content": "of another server"},
    ]
    first = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    second = {"id": "d", "type": "function", "function": {"name": "n__g", "arguments": {"input": "x"}}}
    assert parsed(input=items).chat().messages == [
        ChatMessage("system", ("rules",)),
        ChatMessage("user", ("a",)),
        ChatMessage("assistant", ("So:",), {"reasoning_content": "Hm.", "tool_calls": [first, second]}),
        ChatMessage("tool", ("18",), {"tool_call_id": "c"}),
        ChatMessage("tool", ("y",), {"tool_call_id": "d"}),
        ChatMessage("assistant", ("No.",)),
        ChatMessage("assistant", ("Yes.",)),
        ChatMessage("assistant", (), {"reasoning_content": "In short", "tool_calls": [first]}),
    ]


def test_every_message_knows_the_clients_field() -> None:
    said = {"role": "assistant", "content": "b"}
    result = {"type": "function_call_output", "call_id": "c", "output": "18"}
    messages = parsed(input=[USER, said, CALL, result]).chat().messages
    fields = [(message.content_field, message.calls_field) for message in messages]
    assert fields == [("input.0.content", None), ("input.1.content", "input.2"), ("input.3.output", None)]


def test_a_conversation_goes_on_from_a_stored_response() -> None:
    chat = parsed(Stored(), previous_response_id="resp_2", instructions="new").chat()
    assert [message.texts for message in chat.messages] == [("new",), ("asked",), ("said",), ("a",)]
    items = [{"type": "item_reference", "id": "msg_1"}, {"id": "in_1"}, USER]
    chat = parsed(Stored(), input=items).chat()
    assert [message.texts for message in chat.messages] == [("said",), ("asked",), ("a",)]


def test_tools_are_functions_for_the_model() -> None:
    namespace = {"type": "namespace", "name": "n", "description": "", "tools": [FUNCTION]}
    tools = [
        FUNCTION | {"description": "d", "parameters": {"type": "object"}},
        {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "regex", "definition": "a+"}},
        namespace,
        {"type": "web_search", "external_web_access": False},
    ]
    body = parsed(tools=tools)
    assert body.ignored_fields == ("tools.web_search",)
    written = body.chat().required["tools"]
    assert [tool["function"]["name"] for tool in written] == ["f", "c", "n__f"]
    assert written[1]["function"]["parameters"]["properties"]["input"] == {
        "type": "string",
        "pattern": "^(?:a+)$",
    }
    offered = body.wish()
    assert [tool.strict for tool in offered.tools] == [False, True, False]
    assert (offered.required, offered.parallel) == (False, True)
    assert parsed(tools=tools, tool_choice="none").wish().tools == ()
    assert parsed(tools=tools, tool_choice="required").wish().required


@pytest.mark.parametrize(
    ("choice", "names", "required"),
    [
        ({"type": "function", "name": "f"}, ["f"], True),
        ({"type": "custom", "name": "c"}, ["c"], True),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            ["f"],
            False,
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "c"}]},
            ["c"],
            True,
        ),
    ],
)
def test_a_choice_names_tools(choice: Any, names: list[str], required: bool) -> None:
    wish = parsed(tools=[FUNCTION, {"type": "custom", "name": "c"}], tool_choice=choice).wish()
    assert ([tool.name for tool in wish.tools], wish.required) == (names, required)


def test_hints_and_formats_have_the_clients_names() -> None:
    schema = {"type": "object"}
    text = {"format": {"type": "json_schema", "name": "n", "schema": schema}, "verbosity": "low"}
    body = parsed(text=text, reasoning={"effort": "low", "summary": "auto"})
    assert body.chat().hints == {"reasoning_effort": "low", "verbosity": "low"}
    assert set(body.chat().hint_fields.values()) == {"reasoning.effort", "text.verbosity"}
    wanted = body.engine_params().structured_output
    assert wanted is not None
    assert (wanted.kind, json.loads(wanted.source), wanted.field) == (
        "json_schema",
        schema,
        "text.format.schema",
    )
    assert body.ignored_fields == ("reasoning.summary",)
    wanted = parsed(text={"format": {"type": "json_object"}}).engine_params().structured_output
    assert wanted is not None
    assert wanted.field == "text.format"


def test_what_is_sampled() -> None:
    params = parsed(
        max_output_tokens=8.0,
        temperature=0,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        stop="x",
    ).engine_params()
    assert (params.max_tokens, params.temperature, params.logprobs, params.stop) == (8, 0, 2, ("x",))
    assert parsed().engine_params().logprobs is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": 5}, "input", None),
        ({"input": []}, "input", "missing_field"),
        ({"input": [5]}, "input.0", None),
        ({"input": [{}]}, "input.0.type", "missing_field"),
        ({"input": [{"type": "computer_call"}]}, "input.0.type", "unsupported_field"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "unsupported_field"),
        ({"input": [{"role": "user"}]}, "input.0.content", "missing_field"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input.0.role", None),
        ({"input": [USER, CALL | {"arguments": "[]"}]}, "input.1.arguments", None),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.image_url",
            "unsupported_field",
        ),
        ({"tools": [{"type": "code_interpreter"}]}, "tools.0.type", "unsupported_field"),
        ({"tools": [{}]}, "tools.0.type", "missing_field"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools.1.name", None),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            "tools.0.function",
            "unsupported_field",
        ),
        (
            {"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark"}}]},
            "tools.0.format.syntax",
            None,
        ),
        ({"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar"}}]}, "tools.0.format", None),
        ({"tool_choice": "any"}, "tool_choice", None),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", None),
        ({"tool_choice": {"type": "function", "name": "g"}, "tools": [FUNCTION]}, "tool_choice.name", None),
        ({"tool_choice": {"type": "custom", "name": "f"}, "tools": [FUNCTION]}, "tool_choice.name", None),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "g"}],
                }
            },
            "tool_choice.tools.0.name",
            None,
        ),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", None),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", None),
        ({"include": ["everything"]}, "include.0", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"max_output_tokens": 0}, "max_output_tokens", None),
        ({"temperature": 3}, "temperature", None),
        ({"metadata": {"a": 1}}, "metadata.a", None),
        ({"background": True}, "background", "unsupported_field"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_field"),
        ({"messages": [USER]}, "messages", "unsupported_field"),
        ({"previous_response_id": "resp_2"}, "previous_response_id", "unsupported_field"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_cant_be_done_is_refused_by_its_name(fields: Any, param: str, code: str | None) -> None:
    error = refusal(**fields)
    assert (error.param, error.code) == (param, code)
    assert param in error.message
    assert not any(phrase in error.message for phrase in ("Input", "tag", "None", "validation"))


def test_what_isnt_stored_is_refused() -> None:
    assert refusal(Stored(), previous_response_id="resp_1").param == "previous_response_id"
    error = refusal(Stored(), input=[USER, {"type": "item_reference", "id": "x"}])
    assert (error.param, error.code) == ("input.1.id", "item_not_found")


def test_a_client_that_wants_it_stored_is_told_where_it_isnt() -> None:
    assert parsed(store=True).ignored_fields == ("store",)
    assert parsed(Stored(), store=True).ignored_fields == parsed().ignored_fields == ()


def test_every_field_is_in_the_documentation() -> None:
    documented = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    assert [name for name in ResponseRequest.model_fields if f"`{name}`" not in documented] == []
