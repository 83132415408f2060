"""Bodies of Anthropic's API: what they become, and how what is wrong with them is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.api.anthropic.request import MessagesRequest, parse_count, parse_messages
from app.api.anthropic.thoughts import MARK, signature_of
from app.api.bodies import parse_any
from app.api.openai.requests import ChatRequest
from app.errors import InvalidRequestError
from app.text.chat_prompt import ChatMessage

HELLO = {"role": "user", "content": "Hello"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "get_weather", "description": "The weather", "input_schema": SCHEMA}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "18 degrees"}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def body(*messages: Any, **fields: Any) -> MessagesRequest:
    given = {"model": "m", "max_tokens": 9, "messages": messages or [HELLO]} | fields
    return parse_messages(json.dumps(given).encode())


def refusal(*messages: Any, **fields: Any) -> InvalidRequestError:
    def read() -> None:
        parsed = body(*messages, **fields)
        parsed.chat()
        parsed.wish()
        parsed.engine_params()

    with pytest.raises(InvalidRequestError) as caught:
        read()
    return caught.value


def said(*messages: Any, **fields: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(each.role, each.texts) for each in body(*messages, **fields).chat().messages]


def test_a_plain_message_is_a_chat() -> None:
    request = body(system="Be brief.", temperature=0.5, top_k=5, top_p=0.5, stop_sequences=["a", "b"], seed=1)
    chat = request.chat()
    assert chat.messages == [ChatMessage("system", ("Be brief.",)), ChatMessage("user", ("Hello",))]
    assert [each.content_field for each in chat.messages] == ["system", "messages.0.content"]
    assert (chat.add_generation_prompt, chat.continue_final_message, chat.thinks) == (True, False, None)
    params = request.engine_params()
    assert (params.max_tokens, params.temperature, params.top_k, params.top_p) == (9, 0.5, 5, 0.5)
    assert (params.stop, params.seed) == (("a", "b"), 1)
    assert (request.n, request.stream, request.shows_thoughts, request.ignored_fields) == (1, False, True, ())


def test_texts_are_blocks_too_and_their_caching_is_taken_everywhere() -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    request = body(
        {"role": "user", "content": [text("Hello", **cached), text(" you")]},
        {"role": "system", "content": [text("Now in French.", **cached)]},
        system=[text("Be brief.", **cached), text("Be kind.", citations=None)],
        tools=[TOOL | cached],
        **cached,
    )
    assert request.ignored_fields == ()
    assert [(each.role, each.texts) for each in request.chat().messages] == [
        ("system", ("Be brief.", "Be kind.")),
        ("user", ("Hello", " you")),
        ("system", ("Now in French.",)),
    ]


def test_calls_and_their_results_are_what_templates_know() -> None:
    failed = {**RESULT, "tool_use_id": "toolu_2", "is_error": True, "content": [text("no"), text(" data")]}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": MARK}
    calls = [thought, text("I look."), CALL, CALL | {"id": "toolu_2"}]
    request = body(
        HELLO,
        {"role": "assistant", "content": calls},
        {"role": "user", "content": [RESULT, failed, text("Well?")]},
        tools=[TOOL],
    )
    _, assistant, first, second, user = request.chat().messages
    assert assistant.texts == ("I look.",)
    assert assistant.fields["reasoning_content"] == "Hm."
    function = {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert assistant.fields["tool_calls"] == [
        {"id": each, "type": "function", "function": function} for each in ("toolu_1", "toolu_2")
    ]
    assert (assistant.content_field, assistant.calls_field) == ("messages.1.content",) * 2
    assert first == ChatMessage("tool", ("18 degrees",), {"tool_call_id": "toolu_1", "name": "get_weather"})
    assert second.texts == ("Error: ", "no", " data")
    assert (first.content_field, second.content_field) == ("messages.2.content.0", "messages.2.content.1")
    assert (user.role, user.texts, user.content_field) == ("user", ("Well?",), "messages.2.content")


def test_texts_and_results_keep_their_order() -> None:
    results = [text("a"), RESULT, text("b"), text("c")]
    messages = [HELLO, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": results}]
    assert said(*messages)[2:] == [("user", ("a",)), ("tool", ("18 degrees",)), ("user", ("b", "c"))]
    empty = {"type": "tool_result", "tool_use_id": "toolu_1"}
    assert said(*messages[:2], {"role": "user", "content": [empty]})[2:] == [("tool", ("",))]


def test_tools_are_written_as_functions() -> None:
    chat = body(tools=[TOOL, {"type": "custom", "name": "bare", "input_schema": {}}]).chat()
    function = {"name": "get_weather", "description": "The weather", "parameters": SCHEMA}
    assert chat.required["tools"] == [
        {"type": "function", "function": function},
        {"type": "function", "function": {"name": "bare", "parameters": {}}},
    ]
    silent = body(tools=[TOOL], tool_choice={"type": "none"})
    assert (silent.chat().required, list(silent.chat().hints)) == ({}, ["tools"])
    assert silent.wish().tools == ()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, (["get_weather", "b"], False, True)),
        ({"type": "auto"}, (["get_weather", "b"], False, True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, (["get_weather", "b"], False, False)),
        ({"type": "any"}, (["get_weather", "b"], True, True)),
        ({"type": "any", "disable_parallel_tool_use": True}, (["get_weather", "b"], True, False)),
        ({"type": "tool", "name": "b"}, (["b"], True, False)),
        ({"type": "none"}, ([], False, True)),
    ],
)
def test_which_tools_are_called(choice: Any, expected: Any) -> None:
    wish = body(
        tools=[TOOL, {"name": "b", "input_schema": SCHEMA, "strict": True}], tool_choice=choice
    ).wish()
    assert ([tool.name for tool in wish.tools], wish.required, wish.parallel) == expected


def test_a_deferred_tool_is_written_where_a_result_refers_to_it() -> None:
    late = TOOL | {"name": "late", "defer_loading": True}
    request = body(tools=[TOOL, late])
    assert [each["function"]["name"] for each in request.chat().required["tools"]] == ["get_weather"]
    assert [tool.name for tool in request.wish().tools] == ["get_weather"]
    found = {"type": "tool_reference", "tool_name": "late"}
    messages = [HELLO, {"role": "assistant", "content": [CALL]}]
    request = body(
        *messages, {"role": "user", "content": [RESULT | {"content": [found]}]}, tools=[TOOL, late]
    )
    assert [each["function"]["name"] for each in request.chat().required["tools"]] == ["get_weather"]
    assert [tool.name for tool in request.wish().tools] == ["get_weather", "late"]
    (definition,) = request.chat().messages[-1].texts
    assert json.loads(definition)["function"]["name"] == "late"
    unknown = {"role": "user", "content": [RESULT | {"content": [found | {"tool_name": "x"}]}]}
    assert refusal(*messages, unknown, tools=[TOOL]).message == (
        "messages.2.content.0.content.0.tool_name = 'x': allowed: 'get_weather'"
    )


@pytest.mark.parametrize(
    ("thinking", "thinks", "told"),
    [
        (None, None, False),
        ({"type": "enabled", "budget_tokens": 1024}, True, True),
        ({"type": "adaptive"}, True, False),
        ({"type": "disabled"}, False, True),
    ],
)
def test_thinking_is_the_templates(thinking: Any, thinks: bool | None, told: bool) -> None:
    request = body(thinking=thinking)
    assert request.chat().thinks == thinks
    assert request.chat().hint_fields.get("thinks") == ("thinking" if told else None)
    budget = thinking is not None and "budget_tokens" in thinking
    assert request.ignored_fields == (("thinking.budget_tokens",) if budget else ())


def test_thoughts_that_were_left_out_come_back_in_their_signature() -> None:
    assert not body(thinking={"type": "adaptive", "display": "omitted"}).shows_thoughts
    block = {"type": "thinking", "thinking": "", "signature": signature_of("Hmm. ü", shown=False)}
    answer = {"role": "assistant", "content": [block, text("b")]}
    assert body(HELLO, answer, HELLO).chat().messages[1].fields == {"reasoning_content": "Hmm. ü"}
    wrong = {"role": "assistant", "content": [block | {"signature": f"{MARK}???"}]}
    assert refusal(HELLO, wrong, HELLO).param == "messages.1.content.0.signature"


def test_thoughts_that_only_anthropics_server_can_read_are_told() -> None:
    foreign = {"type": "thinking", "thinking": "", "signature": "EqQB"}
    redacted = {"type": "redacted_thinking", "data": "EqQB"}
    request = body(HELLO, {"role": "assistant", "content": [foreign, redacted, text("b")]}, HELLO)
    assert request.ignored_fields == ("messages.content.data", "messages.content.signature")
    assert request.chat().messages[1] == ChatMessage("assistant", ("b",))


@pytest.mark.parametrize(
    ("edits", "kept"),
    [
        ([], [0, 1, 2]),
        ([{"type": "clear_thinking_20251015", "keep": "all"}], [0, 1, 2]),
        ([{"type": "clear_thinking_20251015", "keep": {"type": "all"}}], [0, 1, 2]),
        ([{"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 2}}], [1, 2]),
        ([{"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 9}}], [0, 1, 2]),
        ([{"type": "clear_thinking_20251015"}], [2]),
    ],
)
def test_earlier_thoughts_are_cleared_as_asked(edits: Any, kept: list[int]) -> None:
    messages: list[Any] = []
    for place in range(3):
        thought = {"type": "thinking", "thinking": str(place), "signature": ""}
        messages += [HELLO, {"role": "assistant", "content": [thought, text("a")]}]
    chat = body(*messages, HELLO, context_management={"edits": edits}).chat()
    thoughts = [each.fields.get("reasoning_content") for each in chat.messages if each.role == "assistant"]
    assert thoughts == [str(place) if place in kept else None for place in range(3)]


def test_an_output_in_json_and_an_effort() -> None:
    wanted = {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "high"}
    request = body(output_config=wanted)
    output = request.engine_params().structured_output
    assert output is not None
    assert (output.kind, json.loads(output.source)) == ("json_schema", SCHEMA)
    assert output.field == "output_config.format.schema"
    assert request.chat().hints == {"reasoning_effort": "high"}
    assert request.chat().hint_fields["reasoning_effort"] == "output_config.effort"


def test_a_last_message_of_the_assistant_is_the_beginning_of_the_answer() -> None:
    assert body(HELLO, {"role": "assistant", "content": "It is ("}).chat().continue_final_message
    error = refusal(HELLO, {"role": "assistant", "content": [CALL]})
    assert (error.param, "results are needed" in error.message) == ("messages.1", True)


def user(*blocks: Any) -> list[Any]:
    return [{"role": "user", "content": list(blocks)}]


def wrong(field: str, message: str, messages: Any = (), **fields: Any) -> Any:
    return pytest.param(messages, fields, f"{field}{message}", field, id=f"{field}{message}"[:60])


CALLED = [HELLO, {"role": "assistant", "content": [CALL]}]
NO_IMAGE = " = 'image' isn't supported; allowed: 'text'"
CLEAR = "clear_thinking_20251015"


@pytest.mark.parametrize(
    ("messages", "fields", "message", "field"),
    [
        wrong("max_tokens", ": required", max_tokens=None),
        wrong("max_tokens", " = 0: at least 1 is needed", max_tokens=0),
        wrong("system", " = 5: a string or a list is needed", system=5),
        wrong("messages.0.role", " = 'tool': allowed: 'user', ", [{"role": "tool", "content": "a"}]),
        wrong("messages.0.content", ": required", [{"role": "user"}]),
        wrong("messages.0.content.0", " = 5: an object is needed", user(5)),
        wrong("messages.0.content.0.type", ": required", user({"text": "a"})),
        wrong("messages.0.content.0.text", ": required", user({"type": "text"})),
        wrong("messages.0.content.1.text", " = 5: a string is needed", user(text("a"), text("a", text=5))),
        wrong("messages.0.content.0.type", NO_IMAGE, user({"type": "image", "source": {}})),
        wrong("messages.0.content.0.type", " = 'document' isn't supported", user({"type": "document"})),
        wrong(
            "messages.2.content.0.content.0.type",
            f"{NO_IMAGE} or 'tool_reference'",
            CALLED + user(RESULT | {"content": [{"type": "image"}]}),
        ),
        wrong(
            "messages.0.content.0.type",
            " = 'tool_use': the role is 'user'; allowed there: 'text' or 'tool_result'",
            user(CALL),
        ),
        wrong(
            "messages.0.content.0.tool_use_id",
            " = 'toolu_1': no tool_use before it has this id",
            user(RESULT),
        ),
        wrong(
            "tools.0.type",
            " = 'web_search_20250305' isn't supported; allowed: 'custom'",
            tools=[{"type": "web_search_20250305", "name": "web_search"}],
        ),
        wrong("tools.0.input_schema", ": required", tools=[{"name": "a"}]),
        wrong("tool_choice.type", " = 'any': tools are needed", tool_choice={"type": "any"}),
        wrong("tool_choice.name", ": required", tool_choice={"type": "tool"}, tools=[TOOL]),
        wrong(
            "tool_choice.name",
            " = 'a': allowed: 'get_weather'",
            **{"tool_choice": {"type": "tool", "name": "a"}, "tools": [TOOL]},
        ),
        wrong(
            "tool_choice.name",
            " = 'a': goes with the type 'tool'",
            **{"tool_choice": {"type": "auto", "name": "a"}, "tools": [TOOL]},
        ),
        wrong("thinking.type", " = 'always': allowed: 'enabled', ", thinking={"type": "always"}),
        wrong(
            "context_management.edits.0.type",
            f" = 'clear_tool_uses_20250919': allowed: '{CLEAR}'",
            context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        ),
        wrong(
            "context_management.edits.0.keep.value",
            ": required",
            context_management={"edits": [{"type": CLEAR, "keep": {"type": "thinking_turns"}}]},
        ),
        wrong("mcp_servers", ' = [{"a": 1}] isn\'t supported; leave it out', mcp_servers=[{"a": 1}]),
        wrong("container", " = 'c' isn't supported; leave it out", container="c"),
        wrong("stop", ' = ["a"] isn\'t supported; send stop_sequences', stop=["a"]),
    ],
)
def test_what_is_wrong_is_told_by_the_clients_own_field(
    messages: Any, fields: Any, message: str, field: str
) -> None:
    error = refusal(*messages, **fields)
    assert error.message.startswith(message)
    assert error.param == field


def test_what_claude_code_sends_asks_for_nothing_that_is_not_done() -> None:
    """A request of version 2.1.332, shortened."""
    request = body(
        {"role": "user", "content": [text("<system-reminder>"), text("Fix it")]},
        {"role": "system", "content": [text("# Environment", cache_control={"type": "ephemeral"})]},
        system=[text("x-anthropic-billing-header: cc_version=2.1.332.fb8;"), text("You are an agent.")],
        tools=[TOOL, TOOL | {"name": "late", "defer_loading": True}],
        metadata={"user_id": '{"device_id": "3a"}'},
        max_tokens=32000,
        thinking={"type": "adaptive", "display": "omitted"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "high"},
        stream=True,
    )
    assert request.ignored_fields == ()
    assert [each.role for each in request.chat().messages] == ["system", "user", "system"]


def test_only_the_prompt_counts_for_a_count() -> None:
    request = parse_count(json.dumps({"messages": [HELLO], "model": "m"}).encode())
    assert request.chat().messages == [ChatMessage("user", ("Hello",))]


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({}, False),
        ({"tools": []}, False),
        ({"max_tokens": 5}, False),
        ({"system": "a"}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"tools": [TOOL]}, True),
    ],
)
def test_a_body_for_any_endpoint_is_known_by_its_fields(fields: dict[str, Any], ours: bool) -> None:
    parsed = parse_any(json.dumps({"messages": [HELLO], **fields}).encode())
    assert isinstance(parsed, MessagesRequest if ours else ChatRequest)
