"""Text completions of several prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.api.openai.prompts import MAX_PROMPTS, of_prompt, parse_texts
from app.errors import InvalidRequestError, PromptTooLongError


def texts(prompt: Any, **fields: Any) -> list[Any]:
    requests = parse_texts(json.dumps({"prompt": prompt} | fields).encode())
    assert {each.max_tokens for each in requests} == {fields.get("max_tokens", 16)}
    return [each.prompt for each in requests]


def refused(prompt: Any, **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        texts(prompt, **fields)
    return caught.value


def test_each_prompt_is_a_request_of_its_own() -> None:
    assert texts("one") == texts(["one"]) == ["one"]
    assert texts([1, 2]) == texts([[1, 2]]) == [[1, 2]]
    assert texts(["one", "two", "one"], max_tokens=3) == ["one", "two", "one"]
    assert texts([[1, 2], [3.0], "mixed"]) == [[1, 2], [3], "mixed"]


def test_ignored_fields_are_told_of_all() -> None:
    requests = parse_texts(b'{"prompt": ["a", "b"], "opts": 5}')
    assert [each.ignored_fields for each in requests] == [("opts",)] * 2


@pytest.mark.parametrize(
    ("prompts", "param", "said"),
    [
        (["one", 5], "prompt.1", "a string or a list is needed"),
        (["one", None], "prompt.1", "a string or a list is needed"),
        (["one", "two", []], "prompt.2", "1 entry at least"),
        (["one", [5, -1]], "prompt.1", "at least 0"),
        ([["one"], "two"], "prompt.0", "an integer is needed"),
        (["one", [[5]]], "prompt.1", "an integer is needed"),
    ],
)
def test_the_prompt_at_fault_is_named(prompts: Any, param: str, said: str) -> None:
    error = refused(prompts)
    assert error.param is not None
    assert error.param.startswith(param)
    assert said in error.message


def test_their_number_is_bounded() -> None:
    error = refused(["a"] * (MAX_PROMPTS + 1))
    assert error.message == f"prompt: {MAX_PROMPTS + 1} prompts; at most {MAX_PROMPTS} are allowed"
    assert len(texts(["a"] * MAX_PROMPTS, n=4)) == MAX_PROMPTS
    assert refused(["a"] * MAX_PROMPTS, n=5).param == "n"


def test_an_error_names_its_prompt() -> None:
    error = of_prompt(PromptTooLongError("too long", param="prompt"), 3)
    assert (error.message, error.param) == ("prompt 3 (from 0): too long", "prompt.3")
    assert of_prompt(InvalidRequestError("no", param="n"), 3).param == "n"
