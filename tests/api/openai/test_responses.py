"""Answers in OpenAI's shapes, judged by OpenAI's own types."""

from __future__ import annotations

import json
import pickle

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from app import errors
from app.api.openai.responses import AnswerShape, Choice, Usage, error_headers, error_json, sse
from app.deployments.messages import Refusal

CHAT = AnswerShape("chat", "1", "m", created=5)
TEXT = AnswerShape("text", "1", "m", created=5)
USAGE = Usage(prompt_tokens=40, cached_tokens=32, completion_tokens=2)


def test_a_whole_chat() -> None:
    answer = ChatCompletion.model_validate(CHAT.whole([Choice("Hi", "stop")], USAGE), strict=True)
    assert answer.id == "chatcmpl-1"
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "Hi"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        40,
        2,
        42,
    )
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 32


def test_a_whole_text() -> None:
    answer = Completion.model_validate(TEXT.whole([Choice("Hi", "length")], USAGE), strict=True)
    assert (answer.id, answer.object, answer.created, answer.model) == ("cmpl-1", "text_completion", 5, "m")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hi", "length")


def test_a_streamed_chat() -> None:
    first = ChatCompletionChunk.model_validate(CHAT.chunk("Hi", is_first=True), strict=True)
    middle = ChatCompletionChunk.model_validate(CHAT.chunk(" there", is_first=False), strict=True)
    end = ChatCompletionChunk.model_validate(CHAT.end("stop"), strict=True)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "Hi")
    assert (middle.choices[0].delta.role, middle.choices[0].delta.content) == (None, " there")
    assert (end.choices[0].delta.content, end.choices[0].finish_reason) == (None, "stop")
    assert first.id == middle.id == end.id


@pytest.mark.parametrize("is_first", [True, False])
def test_a_streamed_text(is_first: bool) -> None:
    (choice,) = TEXT.chunk("Hi", is_first=is_first)["choices"]
    assert choice == {"index": 0, "text": "Hi", "logprobs": None, "finish_reason": None}


@pytest.mark.parametrize("shape", [CHAT, TEXT])
def test_usage_comes_in_a_chunk_without_choices(shape: AnswerShape) -> None:
    chunk = shape.usage_chunk(USAGE)
    assert chunk["choices"] == []
    assert chunk["usage"]["total_tokens"] == 42


def test_an_event_of_a_stream() -> None:
    event = sse({"text": "ü\n"})
    assert event == b'data: {"text":"\xc3\xbc\\n"}\n\n'


REFUSALS = {
    errors.InvalidRequestError("m", param="p", code="c"): (400, "invalid_request_error"),
    errors.PromptTooLongError("m", param="p"): (400, "invalid_request_error"),
    errors.ModelNameError("m"): (404, "invalid_request_error"),
    errors.RequestTooLargeError("m"): (413, "invalid_request_error"),
    errors.QueueFullError("m", retry_after_s=7): (429, "rate_limit_error"),
    errors.RequestFailedError("m"): (500, "server_error"),
    errors.EngineFailedError("m"): (500, "server_error"),
    errors.RankDiedError("m"): (502, "server_error"),
    errors.NoRankError("m"): (503, "server_error"),
}


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_after_its_way_between_processes(error: errors.RequestError) -> None:
    status, kind = REFUSALS[error]
    arrived = pickle.loads(pickle.dumps(Refusal(error))).error
    assert type(arrived) is type(error)
    assert arrived.status == status
    assert error_json(arrived) == error_json(error)
    assert error_headers(arrived) == error_headers(error)
    shown = json.loads(json.dumps(error_json(arrived)))["error"]
    assert shown == {"message": "m", "type": kind, "param": error.param, "code": error.code}


def test_what_passes_by_itself_says_when_to_try_again() -> None:
    headers = {type(error): error_headers(error) for error in REFUSALS if error_headers(error)}
    assert headers == {
        errors.QueueFullError: {"retry-after": "7"},
        errors.NoRankError: {"retry-after": "1"},
    }
