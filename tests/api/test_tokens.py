"""Bodies and answers of `/tokenize` and `/detokenize`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.api.tokens import (
    TokenizeChat,
    TokenizeText,
    detokenize_answer,
    parse_detokenize,
    parse_tokenize,
    tokenize_answer,
)
from app.errors import InvalidRequestError

MESSAGES = [{"role": "user", "content": "Hello"}]


def tokenize(**fields: Any) -> TokenizeText | TokenizeChat:
    return parse_tokenize(json.dumps(fields).encode())


def test_a_text_several_or_a_chat() -> None:
    one, several = tokenize(prompt="Hello"), tokenize(prompt=["a", "b"], add_special_tokens=False)
    assert isinstance(one, TokenizeText)
    assert isinstance(several, TokenizeText)
    assert (one.prompt, one.add_special_tokens, one.return_token_strs) == ("Hello", True, False)
    assert (several.prompt, several.add_special_tokens) == (["a", "b"], False)
    chat = tokenize(messages=MESSAGES, add_generation_prompt=False, return_token_strs=True)
    assert isinstance(chat, TokenizeChat)
    assert (chat.return_token_strs, chat.chat().add_generation_prompt) == (True, False)


def test_the_body_of_a_completion_can_be_sent_as_it_is() -> None:
    assert tokenize(messages=MESSAGES, temperature=0.5, stream=True).ignored_fields == ()
    assert tokenize(prompt="Hello", temperature=0.5).ignored_fields == ("temperature",)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a", "messages": MESSAGES}, "prompt"),
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt.1"),
        ({"prompt": [5]}, "prompt.0"),
        ({"messages": []}, "messages"),
        ({"prompt": "a", "return_token_strs": 5}, "return_token_strs"),
        ({"prompt": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        tokenize(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b"{"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    for parse in (parse_tokenize, parse_detokenize):
        with pytest.raises(InvalidRequestError):
            parse(body)


@pytest.mark.parametrize(
    ("tokens", "lists", "is_list"),
    [([5, 6.0], [[5, 6]], False), ([], [[]], False), ([[5], []], [[5], []], True)],
)
def test_tokens_of_one_text_or_several(tokens: Any, lists: Any, is_list: bool) -> None:
    body = parse_detokenize(json.dumps({"tokens": tokens}).encode())
    assert (body.token_lists, body.is_list, body.skip_special_tokens) == (lists, is_list, False)


@pytest.mark.parametrize("tokens", [None, 5, ["a"], [-1], [[5], 6], [5, [6]], [[[5]]]])
def test_what_isnt_tokens_is_refused(tokens: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_detokenize(json.dumps({"tokens": tokens}).encode())
    assert caught.value.param is not None
    assert caught.value.param.startswith("tokens")


def test_answers_are_lists_for_lists() -> None:
    one = tokenize_answer([[5, 6]], is_list=False, max_model_len=9, entries_of=None)
    assert one == {"count": 2, "max_model_len": 9, "tokens": [5, 6]}
    several = tokenize_answer(
        [[5], []], is_list=True, max_model_len=9, entries_of=lambda ids: ["x"] * len(ids)
    )
    assert several == {"count": [1, 0], "max_model_len": 9, "tokens": [[5], []], "token_strs": [["x"], []]}
    assert detokenize_answer(["a"], is_list=False) == {"prompt": "a", "text": "a"}
    assert detokenize_answer(["a"], is_list=True) == {"prompt": ["a"], "text": ["a"]}
