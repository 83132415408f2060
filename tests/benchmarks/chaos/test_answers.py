"""Answers put together from what came, and where two of them part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.chaos.answers import Answer, AnswerParts, Sample, difference

ANSWER = Answer("1", (Sample("ab c", (5, 6), "length"), Sample("d", (7,), "stop")), 3)


def choice(index: int, text: str, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": None} | fields


def test_a_stream_of_text() -> None:
    parts = AnswerParts("text")
    parts.take({"id": "cmpl-1", "choices": [choice(1, "d")]})
    parts.take({"id": "cmpl-1", "choices": [choice(0, "ab", logprobs={"tokens": ["a", "b"]})]})
    assert not parts.answer.is_whole
    parts.take({"id": "cmpl-1", "choices": [choice(0, " c", "length", logprobs={"tokens": [" c"]})]})
    parts.take({"id": "cmpl-1", "choices": [choice(1, "", "stop")]})
    parts.take({"id": "cmpl-1", "choices": [], "usage": {"completion_tokens": 4}})
    samples = (Sample("ab c", ("a", "b", " c"), "length"), Sample("d", (), "stop"))
    assert parts.answer == Answer("cmpl-1", samples, 4)
    assert parts.answer.is_whole


def test_a_chat_as_a_stream_and_whole() -> None:
    stream, whole = AnswerParts("chat"), AnswerParts("chat")
    logprobs = {"content": [{"token": "Hi"}]}
    common: dict[str, Any] = {"index": 0, "logprobs": logprobs}
    stream.take({"id": "1", "choices": [common | {"delta": {"content": "Hi"}, "finish_reason": None}]})
    stream.take({"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    stream.take({"id": "1", "choices": [], "usage": {"completion_tokens": 1}})
    message = common | {"message": {"content": "Hi"}, "finish_reason": "stop"}
    whole.take({"id": "1", "choices": [message], "usage": {"completion_tokens": 1}})
    assert stream.answer == whole.answer == Answer("1", (Sample("Hi", ("Hi",), "stop"),), 1)


def native(text: str, ids: list[int], count: int, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    finish = None if reason is None else {"type": reason}
    meta = {"request_id": "1", "completion_tokens": count, "finish_reason": finish}
    return {"text": text, "output_ids": ids, "meta_info": meta} | fields


@pytest.mark.parametrize("is_incremental", [False, True])
def test_a_native_stream_is_the_same_however_it_comes(is_incremental: bool) -> None:
    parts = AnswerParts("native")
    parts.take(native("a", [5], 1))
    if is_incremental:
        parts.take(native("b", [6], 2, "stop"))
    else:
        parts.take(native("ab", [5, 6], 2, "stop"))
    assert parts.answer == Answer("1", (Sample("ab", (5, 6), "stop"),), 2)


def test_native_samples_in_one_piece() -> None:
    parts = AnswerParts("native")
    parts.take([native("a", [5], 1, "stop"), native("b", [6], 1, "length")])
    assert parts.answer == Answer("1", (Sample("a", (5,), "stop"), Sample("b", (6,), "length")), 2)


def test_answers_with_other_ids_are_the_same() -> None:
    assert difference(ANSWER, replace(ANSWER, id="2")) is None


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (replace(ANSWER, samples=ANSWER.samples[:1]), "1 samples, not 2"),
        (replace(ANSWER, num_tokens=4), "usage counts 4 tokens, not 3"),
        (
            replace(ANSWER, samples=(Sample("ab c", (5, 9), "length"), ANSWER.samples[1])),
            "tokens part at 1 of 2",
        ),
        (
            replace(ANSWER, samples=(Sample("ab", (5, 6), "length"), ANSWER.samples[1])),
            "text parts at character 2",
        ),
        (replace(ANSWER, samples=(ANSWER.samples[0], Sample("d", (7,), "length"))), "finish reason length"),
    ],
)
def test_where_two_answers_part(got: Answer, words: str) -> None:
    assert words in str(difference(ANSWER, got))
