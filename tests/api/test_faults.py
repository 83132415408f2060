"""What a client reads of a wrong value: a sentence of ours, and the field's name as it was sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.api.bodies import PromptBody
from app.api.native.request import GenerateBody, parse_generate
from app.api.openai.requests import ChatRequest, TextRequest, parse_chat, parse_text
from app.api.request_model import RequestBody, parse_body
from app.errors import InvalidRequestError
from tests.support.completion_bodies import chat, refusal, text

NOT_OURS = re.compile(
    r"Input should|[Vv]alue error|valid \w+|validat|pydantic|\bNone\b|\bTrue\b|\bFalse\b|\bdict|constrained"
    r"|\[key\]|unable to parse|NoneType|EOF|serde"
)
VALUES: list[Any] = [
    "",
    "a",
    "a" * 3000,
    5,
    -5,
    5.5,
    1e300,
    2**70,
    True,
    False,
    [],
    [5],
    ["a"],
    [[]],
    [{}],
    {},
]
VALUES += [
    {"a": 1},
    {"type": "a"},
    {"type": 5},
    [{"role": "a"}],
    [None],
    [[["a"]]],
    {"1": "a"},
    {"type": "text"},
]


PARSERS: dict[type[RequestBody], Callable[[bytes], PromptBody]] = {
    ChatRequest: parse_chat,
    TextRequest: parse_text,
    GenerateBody: parse_generate,
}


def refusals() -> Iterator[tuple[str, InvalidRequestError]]:
    """Of every field of every body, with every value that it doesn't take."""
    for model, parse in PARSERS.items():
        prompt: dict[str, Any] = (
            {"messages": [{"role": "user", "content": "a"}]} if model is ChatRequest else {}
        )
        prompt = {"prompt": "a"} if model is TextRequest else prompt or {"text": "a"}
        for name, field in model.model_fields.items():
            for value in VALUES:
                body = {**({} if name == "input_ids" else prompt), field.alias or name: value}
                try:
                    parse(json.dumps(body).encode()).engine_params()
                except InvalidRequestError as error:
                    yield field.alias or name, error


def test_every_refusal_is_a_sentence_of_ours_and_names_the_field() -> None:
    count = 0
    for name, error in refusals():
        count += 1
        assert not NOT_OURS.search(error.message), error.message
        assert error.param is not None
        assert name in (error.param, error.param.split(".")[0]) or name in error.message
        assert len(error.message) < 400
        assert re.search(r": \w|isn't|; ", error.message), error.message
    assert count > 500


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 3}, "temperature = 3: at most 2 is allowed"),
        ({"temperature": "hot"}, "temperature = 'hot': a number is needed"),
        ({"top_p": 0}, "top_p = 0: more than 0 is needed"),
        ({"stream": "yes"}, "stream = 'yes': true or false is needed"),
        ({"n": True}, "n = true: an integer is needed"),
        ({"stop": 5}, "stop = 5: a string or a list is needed"),
        ({"stop": [""]}, "stop.0 = '': 1 character at least"),
        ({"stop_token_ids": [1] * 257}, f"stop_token_ids = [{'1, ' * 25}1...: 256 entries at most"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1 = '-1': a token id is needed as the name"),
        ({"response_format": {"type": "xml"}},
         "response_format.type = 'xml': allowed: 'text', 'json_object' or 'json_schema'"),
        ({"structured_outputs": []}, "structured_outputs = []: an object is needed"),
        ({"use_beam_search": True}, "use_beam_search = true isn't supported; leave it out, or send false"),
        ({"audio": {}}, "audio = {} isn't supported; leave it out"),
    ],
)  # fmt: skip
def test_how_a_refusal_reads(fields: dict[str, Any], message: str) -> None:
    assert refusal(text, **fields).message == message


def test_a_name_is_kept_as_it_was_sent() -> None:
    bias = {"top-p": 1}
    assert refusal(text, logit_bias=bias).param == "logit_bias.top-p"
    error = refusal(chat, messages=[{"role": "user", "content": "a"}, {"role": "robot", "content": "a"}])
    assert error.message.startswith("messages.1.role = 'robot': allowed: 'system', 'developer', 'user', ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty; a JSON object is needed"),
        (b" \n", "the body is empty; a JSON object is needed"),
        (b"\xef\xbb\xbf", "the body is empty; a JSON object is needed"),
        (b'{"prompt": ', "the body isn't JSON: it ends too early, at line 1 column 11"),
        (
            b"{'prompt': 1}",
            "the body isn't JSON: a name must be a string in double quotes, at line 1 column 2",
        ),
        (b"[" * 1000, "the body isn't JSON: it is nested too deeply, at line 1 column 202"),
        (b'{"a": 1,}', "the body isn't JSON: nothing follows a comma, at line 1 column 9"),
        (b'{"a": 1} x', "the body isn't JSON: something follows its end, at line 1 column 10"),
        (b'{"prompt": "\xff"}', "the body isn't JSON: it isn't UTF-8, at line 1 column 13"),
        (b'{"a": NaN}', "the body isn't JSON: something else is expected, at line 1 column 7"),
        (b"[]", "the body = []: an object is needed"),
        (b"null", "the body = null: an object is needed"),
    ],
)
def test_how_the_refusal_of_a_body_reads(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_body(TextRequest, body)
    assert caught.value.message == message


def test_a_byte_order_mark_changes_nothing() -> None:
    assert parse_body(TextRequest, b'\xef\xbb\xbf{"prompt": "a"}').prompt == "a"
