"""Chats and texts: prompts, messages, logprobs, limits."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import InvalidRequestError
from tests.support.completion_bodies import chat, refusal, text


@pytest.mark.parametrize("prompt", ["one", [1, 2, 3]])
def test_a_single_prompt_may_be_a_list_of_prompts(prompt: Any) -> None:
    assert text(prompt=[prompt]) == text(prompt=prompt)
    error = refusal(text, prompt=[prompt, prompt])
    assert error.message == "prompt: 2 prompts; one per request is allowed"
    assert error.param == "prompt"


def test_a_chats_field_is_unknown_to_a_text_and_the_other_way_round() -> None:
    assert refusal(text, messages=[]).code == "unknown_field"
    assert refusal(chat, prompt="a").code == "unknown_field"
    assert refusal(text, max_completion_tokens=5).code == "unknown_field"


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
        ({"role": "tool", "content": "a"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages.0.content"),
        ({"role": "user", "content": "a", "tool_calls": []}, "messages.0.tool_calls"),
    ],
)
def test_a_message_that_is_not_understood(message: dict[str, Any], param: str) -> None:
    found = refusal(chat, messages=[message]).param
    assert found is not None
    assert found.startswith(param)


def test_messages_reach_the_template_as_plain_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "rules"}, {"role": "user", "content": parts, "name": "Ann"}]
    assert [message.flat() for message in chat(messages=messages).messages] == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "ab", "name": "Ann"},
    ]


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
    with pytest.raises(InvalidRequestError, match="send one of them"):
        chat(max_tokens=5, max_completion_tokens=7)


def test_null_is_the_same_as_nothing_at_any_depth() -> None:
    body = chat(
        messages=[{"role": "assistant", "content": "x", "name": None, "refusal": None}],
        stream=True,
        stream_options={"include_usage": None},
        temperature=None,
    )
    assert body.messages[0].flat() == {"role": "assistant", "content": "x"}
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
