"""Chats and texts: prompts, messages, logprobs, limits."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import InvalidRequestError
from app.text.chat_prompt import ChatMessage
from app.text.output.formats import CallWish
from app.text.output.grammars import Tool
from tests.support.completion_bodies import chat, refusal, text


def call(arguments: Any) -> dict[str, Any]:
    """A call of the function f."""
    return {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}


def template_messages(**fields: Any) -> list[ChatMessage]:
    """What a chat's template gets."""
    return list(chat(**fields).chat().messages)


@pytest.mark.parametrize("prompt", ["one", [1, 2, 3]])
def test_a_single_prompt_may_be_a_list_of_prompts(prompt: Any) -> None:
    assert text(prompt=[prompt]) == text(prompt=prompt)
    error = refusal(text, prompt=[prompt, prompt])
    assert error.message == "prompt: 2 prompts; one per request is allowed"
    assert error.param == "prompt"


def test_a_field_of_the_other_endpoint_is_refused() -> None:
    for parse, field in ((text, "messages"), (chat, "prompt"), (text, "max_completion_tokens")):
        error = refusal(parse, **{field: 5})
        assert (error.param, error.code) == (field, "unsupported_field")
        assert "; send " in error.message


@pytest.mark.parametrize("prompt", [["a", "b"], [["a"]], [], [1, -1], [1.5], [2**32], {"a": 1}, 5])
def test_a_prompt_is_one_text_or_token_ids(prompt: Any) -> None:
    param = refusal(text, prompt=prompt).param
    assert param is not None
    assert param.startswith("prompt")


def test_token_ids_as_a_prompt() -> None:
    assert text(prompt=[1, 2, 3]).prompt == [1, 2, 3]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "content": "a"}, "messages.0.role"),
        ({"role": "user", "content": "a", "images": ["x"]}, "messages.0.images"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": "file", "text": "a"}]}, "messages.0.content.0.type"),
        ({"role": "user", "content": ["a"]}, "messages.0.content.0"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages.0.content"),
        ({"role": "assistant", "content": "a", "audio": {"id": "b"}}, "messages.0.audio"),
        ({"role": "user", "content": "a", "tool_calls": [call("{}")]}, "messages.0.tool_calls"),
        (
            {"role": "assistant", "content": None, "tool_calls": [call("{}") | {"type": "custom"}]},
            "messages.0.tool_calls.0.type",
        ),
        *(
            (
                {"role": "assistant", "content": None, "tool_calls": [call("{}"), call(arguments)]},
                "messages.0.tool_calls.1.function.arguments",
            )
            for arguments in ("{", "[]", "5", 5)
        ),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages.0.content"),
    ],
)
def test_a_message_that_is_not_understood(message: dict[str, Any], param: str) -> None:
    error = refusal(template_messages, messages=[message])
    assert error.param is not None
    assert error.param.startswith(param)
    assert error.message.startswith(param)


def test_messages_reach_the_template_as_plain_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "rules"}, {"role": "user", "content": parts, "name": "Ann"}]
    assert template_messages(messages=messages) == [
        ChatMessage("system", ("rules",)),
        ChatMessage("user", ("a", "b"), {"name": "Ann"}),
    ]


def test_an_assistants_answer_comes_back_in_every_form_that_clients_send() -> None:
    messages: list[Any] = [
        {"role": "assistant", "content": None, "tool_calls": [call('{"city": "Paris"}'), call("")]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "18 °C"}]},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "Yes.", "refusal": None, "reasoning_content": "Hm."},
        {"role": "assistant", "reasoning": "Hm.", "tool_calls": [call({"a": 1})]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
    ]
    paris = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"city": "Paris"}}}
    bare = paris | {"function": {"name": "f", "arguments": {}}}
    given = paris | {"function": {"name": "f", "arguments": {"a": 1}}}
    assert template_messages(messages=messages) == [
        ChatMessage("assistant", (), {"tool_calls": [paris, bare]}),
        ChatMessage("tool", ("18 °C",), {"tool_call_id": "call_1"}),
        ChatMessage("assistant", ("No.",)),
        ChatMessage("assistant", ("No.",)),
        ChatMessage("assistant", ("Yes.",), {"reasoning_content": "Hm."}),
        ChatMessage("assistant", (), {"reasoning_content": "Hm.", "tool_calls": [given]}),
        ChatMessage("assistant", ("a",)),
    ]


WEATHER = {"name": "get_weather", "description": "Tells it.", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": {"name": "get_time"}}]
NAMED = {"type": "function", "function": {"name": "get_time"}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    """The choice of some tools."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_which_calls_a_chat_wants() -> None:
    weather, time = Tool("get_weather", {"type": "object"}), Tool("get_time")
    assert chat().wish() == chat(tools=[]).wish() == chat(tool_choice="auto").wish() == CallWish()
    assert chat(tools=TOOLS).wish() == CallWish((weather, time))
    assert chat(tools=TOOLS, tool_choice="none").wish() == CallWish()
    assert chat(tools=TOOLS, parallel_tool_calls=False).wish() == CallWish((weather, time), parallel=False)
    assert chat(tools=TOOLS, tool_choice="required").wish() == CallWish((weather, time), required=True)
    assert chat(tools=TOOLS, tool_choice=NAMED).wish() == CallWish((time,), required=True, parallel=False)
    some = chat(tools=TOOLS, tool_choice=allowed("auto", "get_time", "get_time"))
    assert some.wish() == CallWish((time,))
    assert [tool["function"]["name"] for tool in some.chat().required["tools"]] == ["get_weather", "get_time"]
    both = chat(tools=TOOLS, tool_choice=allowed("required", "get_time", "get_weather"))
    assert both.wish() == CallWish((time, weather), required=True)


def test_tools_reach_the_template_as_they_are() -> None:
    assert chat(tools=TOOLS).chat().required["tools"] == TOOLS
    assert chat(tools=TOOLS, tool_choice="none").chat().hints["tools"] == TOOLS
    assert chat(tools=[]).chat().required == {}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice.function.name"),
        ({"tool_choice": NAMED}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "get_time", "x")},
         "tool_choice.allowed_tools.tools.1.function.name"),
        ({"tools": TOOLS, "tool_choice": allowed("any", "get_time")}, "tool_choice.allowed_tools.mode"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": NAMED | {"allowed_tools": {"mode": "auto", "tools": [NAMED]}}},
         "tool_choice.allowed_tools"),
    ],
)  # fmt: skip
def test_tools_that_are_none(fields: dict[str, Any], param: str) -> None:
    error = refusal(lambda **given: chat(**given).wish(), **fields)
    assert error.param == param
    assert param in error.message


def test_what_shapes_a_chats_prompt() -> None:
    given = chat(
        chat_template_kwargs={"enable_thinking": False},
        reasoning_effort="low",
        verbosity="high",
        documents=[{"text": "a"}],
        add_generation_prompt=False,
        add_special_tokens=True,
    ).chat()
    assert (given.add_generation_prompt, given.continue_final_message, given.add_special_tokens) == (
        False,
        False,
        True,
    )
    assert given.variables == {"enable_thinking": False}
    assert given.hints == {"reasoning_effort": "low", "verbosity": "high"}
    assert given.required == {"documents": [{"text": "a"}]}
    assert chat(continue_final_message=True).chat().continue_final_message
    plain = chat().chat()
    assert (plain.variables, plain.hints, plain.required) == ({}, {}, {})
    assert refusal(chat, continue_final_message=True, add_generation_prompt=True).param == (
        "add_generation_prompt"
    )


def test_no_messages() -> None:
    assert refusal(chat, messages=[]).param == "messages"


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    fields = ("temperature", "top_p", "max_tokens", "stop", "stream", "seed", "model", "stream_options")
    assert text(**dict.fromkeys(fields)) == text()
    assert refusal(text, prompt=None).code == "missing_field"


def test_output_limits() -> None:
    assert text().max_output_tokens == 16
    assert chat().max_output_tokens is None
    assert chat(max_tokens=5).max_output_tokens == 5
    assert chat(max_completion_tokens=7).max_output_tokens == 7
    assert chat(max_completion_tokens=7, max_tokens=7).max_output_tokens == 7
    with pytest.raises(InvalidRequestError, match="send one of them"):
        chat(max_tokens=5, max_completion_tokens=7)


def test_null_is_the_same_as_nothing_at_any_depth() -> None:
    body = chat(
        messages=[{"role": "assistant", "content": "x", "name": None, "refusal": None}],
        stream=True,
        stream_options={"include_usage": None},
        temperature=None,
    )
    assert body.chat().messages == [ChatMessage("assistant", ("x",))]
    assert body.temperature == 1.0
    assert body.stream_options is not None
    assert not body.stream_options.include_usage


def test_logprobs_of_chats_and_of_texts() -> None:
    assert chat().sampling_params(9).logprobs is None
    assert chat(logprobs=False, top_logprobs=0).sampling_params(9).logprobs is None
    assert chat(logprobs=True).sampling_params(9).logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).sampling_params(9).logprobs == 20
    assert text(logprobs=0).sampling_params(9).logprobs == 0
    assert refusal(chat, top_logprobs=3).message == "top_logprobs = 3; allowed only with logprobs: true"
    assert refusal(chat, logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert refusal(chat, logprobs=1).param == "logprobs"
    assert refusal(text, logprobs=True).param == refusal(text, logprobs=21).param == "logprobs"
    assert refusal(text, top_logprobs=3).code == "unsupported_field"
