"""Text out of a rank's tokens, with the real tokenizer; only the transport from the rank is missing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion import ChoiceLogprobs
from openai.types.completion_choice import Logprobs as TextLogprobs
from starlette.types import Message

from app.api.openai.responses import AnswerShape
from app.deployments.ingress.answers.completions import stream_answer, whole_answer
from app.deployments.ingress.answers.events import AnswerEvents
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.deployments.messages import RankMessage, Refusal
from app.errors import EngineFailedError, RankDiedError
from app.generation import TokenChunk, TokenLogprobs
from app.text.output.formats import OutputFormat
from app.text.tokenizer import Tokenizer
from tests.support.fake_deployments import begun

SHAPE = AnswerShape("text", "1", "m")
CHAT_SHAPE = AnswerShape("chat", "1", "m")
TEXT = "Zwölf Boxkämpfer 🙂 語 — the end"


@pytest.fixture(scope="session")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


def chunks(token_ids: list[int], finish_reason: str | None) -> list[TokenChunk]:
    """One token each, as a rank sends them while it decodes."""
    parts = [TokenChunk([token_id], 20, 16) for token_id in token_ids[:-1]]
    return [*parts, TokenChunk(token_ids[-1:], 20, 16, finish_reason)]


def data_of(lines: Sequence[bytes]) -> list[Any]:
    """The events, parsed; the last may be the string `[DONE]`."""
    data = [line.removeprefix(b"data: ").removesuffix(b"\n\n").decode() for line in lines]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


async def events_of(stream: RankStream, tokenizer: Tokenizer, **options: Any) -> list[Any]:
    """The stream's events, parsed; the last may be the string `[DONE]`."""
    options = {"usage": "none"} | options
    stop = options.pop("stop", ())
    return data_of(
        [line async for line in stream_answer(SHAPE, stream, tokenizer.text_stream(stop), **options)]
    )


def text_of(events: list[Any]) -> str:
    return "".join(event["choices"][0]["text"] for event in events if event != "[DONE]" and event["choices"])


async def test_whole_and_streamed_are_the_same_text(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(TEXT)
    whole_stream, call, results = await begun(chunks(token_ids, "length"))
    whole = await whole_answer(SHAPE, whole_stream, tokenizer.text_stream())
    events = await events_of((await begun(chunks(token_ids, "length"))).stream, tokenizer)
    assert whole["choices"][0]["text"] == text_of(events) == TEXT
    assert whole["choices"][0]["finish_reason"] == events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1] == "[DONE]"
    assert results == ["finished"]
    assert not any("\ufffd" in json.dumps(event, ensure_ascii=False) for event in events)
    assert call.num_cancelled == 1


async def test_usage_counts_every_token_even_those_without_text(tokenizer: Tokenizer) -> None:
    token_ids = [*tokenizer.encode("Hi"), *tokenizer.eos_token_ids]
    stream = (await begun(chunks(token_ids, "stop"))).stream
    whole = await whole_answer(SHAPE, stream, tokenizer.text_stream())
    assert whole["choices"][0]["text"] == "Hi"
    assert whole["usage"]["completion_tokens"] == len(token_ids)
    assert whole["usage"]["prompt_tokens"] == 20
    assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 16
    events = await events_of((await begun(chunks(token_ids, "stop"))).stream, tokenizer, usage="last chunk")
    assert events[-2]["usage"] == whole["usage"]


async def test_an_unfinished_character_at_the_end_is_shown_as_one(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a🙂")[:-1]
    events = await events_of((await begun(chunks(token_ids, "length"))).stream, tokenizer)
    assert text_of(events).startswith("a\ufffd")
    assert events[-2]["choices"][0]["finish_reason"] == "length"


async def test_nothing_of_a_stop_string_is_sent(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("one, two, three")
    events = await events_of((await begun(chunks(token_ids, "stop"))).stream, tokenizer, stop=(", thr",))
    assert text_of(events) == "one, two"


async def test_a_stream_that_breaks_off_ends_with_the_error_and_not_with_done(tokenizer: Tokenizer) -> None:
    refusal = Refusal(EngineFailedError("the engine broke"))
    stream, *_ = await begun([*chunks(tokenizer.encode("Hello"), None), refusal])
    events = await events_of(stream, tokenizer, usage="last chunk")
    assert text_of(events[:-1]) == "Hello"
    assert events[-1] == {
        "error": {
            "message": "rank 1 failed (the engine broke) while it answered, and the answer can't go on "
            "elsewhere: no further rank is tried (ingress.max_retries = 0)",
            "type": "server_error",
            "param": None,
            "code": "rank_died",
        }
    }


async def test_an_answer_in_one_piece_that_breaks_off_is_an_error(tokenizer: Tokenizer) -> None:
    stream, _, results = await begun(
        [*chunks(tokenizer.encode("Hello"), None), Refusal(EngineFailedError("broke"))]
    )
    with pytest.raises(RankDiedError, match="broke"):
        await whole_answer(SHAPE, stream, tokenizer.text_stream())
    assert results == ["died"]


async def test_samples_that_come_side_by_side_are_kept_apart(tokenizer: Tokenizer) -> None:
    wanted = ["Zwölf Boxkämpfer", "the 🙂 end"]
    of_samples = [chunks(tokenizer.encode(sample), "stop") for sample in wanted]
    messages = [
        replace(chunk, index=index)
        for pair in zip_longest(*of_samples)
        for index, chunk in enumerate(pair)
        if chunk is not None
    ]
    whole = await whole_answer(
        SHAPE, (await begun(messages, num_samples=2)).stream, tokenizer.text_stream(), tokenizer.text_stream()
    )
    assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == list(enumerate(wanted))
    assert whole["usage"]["prompt_tokens"] == 20
    assert whole["usage"]["completion_tokens"] == len(messages)

    stream = (await begun(messages, num_samples=2)).stream
    texts = [tokenizer.text_stream() for _ in wanted]
    lines = [line async for line in stream_answer(CHAT_SHAPE, stream, *texts, usage="none")]
    choices = [json.loads(line.removeprefix(b"data: "))["choices"][0] for line in lines[:-1]]
    for index, sample in enumerate(wanted):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == sample
        assert ["role" in choice["delta"] for choice in own] == [True] + [False] * (len(own) - 1)
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]


@pytest.mark.parametrize("shape", [SHAPE, CHAT_SHAPE], ids=["text", "chat"])
@pytest.mark.parametrize("text", ["Hello there", ""])
async def test_a_samples_last_chunk_has_the_reason_of_its_end_and_nothing_else(
    tokenizer: Tokenizer, shape: AnswerShape, text: str
) -> None:
    token_ids = [*tokenizer.encode(text), *tokenizer.eos_token_ids]
    stream = (await begun(chunks(token_ids, "stop"))).stream
    events = data_of(
        [each async for each in stream_answer(shape, stream, tokenizer.text_stream(), usage="last chunk")]
    )
    *pieces, end, usage, done = events
    assert done == "[DONE]"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], len(token_ids))
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None] * len(pieces)
    (choice,) = end["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice.get("delta", {}) == {}
    assert choice.get("text", "") == ""
    if shape.kind == "chat":
        deltas = [piece["choices"][0]["delta"] for piece in pieces]
        assert "".join(delta["content"] for delta in deltas) == text
        assert deltas[0]["role"] == "assistant"
    assert not any("usage" in event for event in (*pieces, end))


async def test_every_chunk_can_have_the_counts_so_far(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("Hello there, you")
    events = await events_of(
        (await begun(chunks(token_ids, "length"))).stream, tokenizer, usage="every chunk"
    )
    counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
    assert counts == [*range(1, len(token_ids) + 1), len(token_ids), len(token_ids)]


CALLS = (
    "<think>Hm.</think>I look.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)


@pytest.mark.parametrize("shows_thoughts", [True, False])
async def test_calls_and_thoughts_are_told_whole_and_streamed(
    tokenizer: Tokenizer, shows_thoughts: bool
) -> None:
    output = OutputFormat("hermes", frozenset({"get_weather", "get_time"}), "possible")
    shape = AnswerShape("chat", "1", "m", output=output, shows_thoughts=shows_thoughts)
    token_ids = [*tokenizer.encode(CALLS), *tokenizer.eos_token_ids]
    stream = (await begun(chunks(token_ids, "stop"))).stream
    answer = await whole_answer(shape, stream, tokenizer.text_stream())
    (choice,) = ChatCompletion.model_validate(answer).choices
    assert choice.finish_reason == "tool_calls"
    message = choice.message
    assert message.content == "I look."
    assert (message.model_dump().get("reasoning_content") == "Hm.") is shows_thoughts
    given = answer["choices"][0]["message"]["tool_calls"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in given]
    assert calls == [("get_weather", '{"city": "Paris"}'), ("get_time", "{}")]

    stream = (await begun(chunks(token_ids, "stop"))).stream
    lines = [each async for each in stream_answer(shape, stream, tokenizer.text_stream(), usage="none")]
    events = data_of(lines)[:-1]
    *pieces, end = [ChatCompletionChunk.model_validate(each).choices[0] for each in events]
    assert (end.finish_reason, end.delta.model_dump(exclude_unset=True)) == ("tool_calls", {})
    assert "".join(piece.delta.content or "" for piece in pieces) == "I look."
    deltas = [event["choices"][0]["delta"] for event in events]
    thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert thoughts == ("Hm." if shows_thoughts else "")
    streamed: dict[int, list[str]] = {}
    for part in (part for delta in deltas for part in delta.get("tool_calls", [])):
        if "id" in part:
            streamed[part["index"]] = [part["id"], part["function"]["name"], ""]
        streamed[part["index"]][2] += part["function"]["arguments"]
    ids = [call["id"] for call in given]
    assert list(streamed.values()) == [[call_id, *call] for call_id, call in zip(ids, calls, strict=True)]
    assert len(set(ids)) == 2


async def test_an_answer_of_calls_alone_has_no_content(tokenizer: Tokenizer) -> None:
    output = OutputFormat("mistral", frozenset({"f"}))
    shape = AnswerShape("chat", "1", "m", output=output)
    token_ids = tokenizer.encode('[TOOL_CALLS][{"name": "f", "arguments": {}}]')
    for reason, shown in (("stop", "tool_calls"), ("length", "length")):
        stream = (await begun(chunks(token_ids, reason))).stream
        (choice,) = (await whole_answer(shape, stream, tokenizer.text_stream()))["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, shown)
        assert len(choice["message"]["tool_calls"][0]["id"]) == 9


@pytest.mark.parametrize("kind", ["text", "chat"])
async def test_an_answer_can_have_its_token_ids(tokenizer: Tokenizer, kind: Any) -> None:
    token_ids = [*tokenizer.encode("a🙂"), *tokenizer.eos_token_ids]
    shape = AnswerShape(kind, "1", "m", prompt_token_ids=[[5, 6]])
    whole = await whole_answer(
        shape, (await begun(chunks(token_ids, "stop"))).stream, tokenizer.text_stream()
    )
    choice = whole["choices"][0]
    assert choice["token_ids"] == token_ids
    assert (whole if kind == "chat" else choice)["prompt_token_ids"] == [5, 6]
    stream = (await begun(chunks(token_ids, "stop"))).stream
    events = data_of(
        [each async for each in stream_answer(shape, stream, tokenizer.text_stream(), usage="none")]
    )
    first, *others = events[:-1]
    assert (first if kind == "chat" else first["choices"][0])["prompt_token_ids"] == [5, 6]
    assert not any(
        "prompt_token_ids" in event or "prompt_token_ids" in event["choices"][0] for event in others
    )
    streamed = [event["choices"][0].get("token_ids", []) for event in events[:-1]]
    assert [token_id for ids in streamed for token_id in ids] == token_ids


@pytest.mark.parametrize("num_sent", [0, 1, 3], ids=["before the headers", "before the text", "in the text"])
async def test_a_client_that_disconnects_from_a_stream_cancels_the_rank(
    tokenizer: Tokenizer, num_sent: int
) -> None:
    stream, call, results = await begun(chunks(tokenizer.encode(TEXT), "length"))
    events = stream_answer(SHAPE, stream, tokenizer.text_stream(), usage="none")
    answer = AnswerEvents(events, stream)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        if len(sent) == num_sent:
            await asyncio.Event().wait()
        sent.append(message)

    async def receive() -> Message:
        """The client disconnects once it has read `num_sent` messages."""
        while len(sent) < num_sent:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    await answer({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
    assert len(sent) == num_sent
    assert call.num_cancelled == 1
    assert results == ["aborted"]


async def test_only_the_first_chunk_of_a_chat_has_the_role(tokenizer: Tokenizer) -> None:
    stream, *_ = await begun(chunks(tokenizer.encode("one, two"), "length"))
    shape = AnswerShape("chat", "1", "m")
    lines = [line async for line in stream_answer(shape, stream, tokenizer.text_stream(), usage="none")]
    deltas = [json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"] for line in lines[:-1]]
    assert ["role" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert "".join(delta.get("content", "") for delta in deltas) == "one, two"


async def test_a_rank_that_dies_after_the_last_token_spoils_nothing(tokenizer: Tokenizer) -> None:
    messages: list[RankMessage] = [
        *chunks(tokenizer.encode("Hello"), "stop"),
        Refusal(EngineFailedError("too late")),
    ]
    whole = await whole_answer(SHAPE, (await begun(messages)).stream, tokenizer.text_stream())
    assert whole["choices"][0]["text"] == "Hello"


async def test_a_stream_that_just_ends_is_an_error_and_not_a_short_answer(tokenizer: Tokenizer) -> None:
    events = await events_of((await begun(chunks(tokenizer.encode("Hello"), None))).stream, tokenizer)
    assert events[-1]["error"]["code"] == "rank_died"


def scored(token_ids: list[int], finish_reason: str = "length") -> list[TokenChunk]:
    """Chunks in which token n's logprob is -n / 100000, and the likeliest are 198, a line's end, and 504."""
    return [
        replace(chunk, logprobs=[TokenLogprobs(-chunk.token_ids[0] / 1e5, ((198, -0.25), (504, -2.5)))])
        for chunk in chunks(token_ids, finish_reason)
    ]


async def whole_and_streamed(
    tokenizer: Tokenizer, kind: Any, messages: Sequence[TokenChunk]
) -> tuple[Any, list[Any]]:
    """The choice of the answer in one piece, and those of the stream."""
    shape = AnswerShape(kind, "1", "m", spell=tokenizer.spell)
    whole = await whole_answer(shape, (await begun(messages)).stream, tokenizer.text_stream())
    lines = [
        line
        async for line in stream_answer(
            shape, (await begun(messages)).stream, tokenizer.text_stream(), usage="none"
        )
    ]
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
    return whole["choices"][0], [event["choices"][0] for event in events]


async def test_a_chats_logprobs_come_with_every_token_and_its_bytes(tokenizer: Tokenizer) -> None:
    token_ids = [*tokenizer.encode(TEXT), *tokenizer.eos_token_ids]
    whole, parts = await whole_and_streamed(tokenizer, "chat", scored(token_ids, "stop"))
    content = whole["logprobs"]["content"]
    assert content == [entry for part in parts[:-1] for entry in part["logprobs"]["content"]]
    assert whole["logprobs"]["refusal"] is None
    assert [entry["logprob"] for entry in content] == [-token_id / 1e5 for token_id in token_ids]
    assert (
        b"".join(bytes(entry["bytes"]) for entry in content).decode() == whole["message"]["content"] == TEXT
    )
    assert (content[-1]["token"], content[-1]["bytes"]) == ("<|im_end|>", [])
    assert content[0]["top_logprobs"] == [
        {"token": "\n", "logprob": -0.25, "bytes": [10]},
        {"token": "The", "logprob": -2.5, "bytes": [84, 104, 101]},
    ]
    ChoiceLogprobs.model_validate(whole["logprobs"], strict=True)


async def test_a_token_that_is_part_of_a_character_has_its_bytes(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a語")
    whole, _ = await whole_and_streamed(tokenizer, "chat", scored(token_ids))
    shown = [(entry["token"], bytes(entry["bytes"])) for entry in whole["logprobs"]["content"]]
    assert shown[0] == ("a", b"a")
    assert len(shown) > 2
    assert "".join(token for token, _ in shown[1:]) == r"\xe8\xaa\x9e"
    assert b"".join(data for _, data in shown[1:]) == "語".encode()
    whole, _ = await whole_and_streamed(tokenizer, "text", scored(token_ids))
    assert all(token.startswith("bytes:\\x") for token in whole["logprobs"]["tokens"][1:])


async def test_a_texts_logprobs_have_offsets_and_the_chosen_token_among_the_likeliest(
    tokenizer: Tokenizer,
) -> None:
    token_ids = tokenizer.encode(TEXT)
    whole, parts = await whole_and_streamed(tokenizer, "text", scored(token_ids))
    logprobs = whole["logprobs"]
    for name, values in logprobs.items():
        assert values == [value for part in parts[:-1] for value in part["logprobs"][name]]
        assert len(values) == len(token_ids)
    assert logprobs["token_logprobs"] == [-token_id / 1e5 for token_id in token_ids]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith("bytes:") or TEXT.startswith(token, offset)
    assert any(token.startswith("bytes:") for token in logprobs["tokens"])
    for token, token_id, likeliest in zip(
        logprobs["tokens"], token_ids, logprobs["top_logprobs"], strict=True
    ):
        assert likeliest == {token: -token_id / 1e5, "\n": -0.25, "The": -2.5}
    TextLogprobs.model_validate(logprobs, strict=True)


async def test_a_request_without_logprobs_gets_none(tokenizer: Tokenizer) -> None:
    events = await events_of((await begun(chunks(tokenizer.encode("one two"), "length"))).stream, tokenizer)
    assert {event["choices"][0]["logprobs"] for event in events[:-1]} == {None}
