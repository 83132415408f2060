"""Text out of a rank's tokens, with the real tokenizer; only the transport from the rank is missing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from app.deployments.answer import AnswerEvents, stream_answer, whole_answer
from app.deployments.dispatcher import RankStream
from app.deployments.messages import RankMessage, Refusal, TokenChunk
from app.deployments.openai_responses import AnswerShape
from app.errors import EngineFailedError
from app.tokenizer import Tokenizer

SHAPE = AnswerShape("text", "1", "m")
TEXT = "Zwölf Boxkämpfer 🙂 語 — the end"


class Messages:
    """What a rank would send, and whether it was told to stop."""

    def __init__(self, messages: Sequence[RankMessage]) -> None:
        self._messages = messages
        self.num_cancelled = 0

    async def __aiter__(self) -> AsyncIterator[RankMessage]:
        for message in self._messages:
            yield message

    def cancel(self) -> None:
        self.num_cancelled += 1


@pytest.fixture(scope="session")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


def chunks(token_ids: list[int], finish_reason: str | None) -> list[TokenChunk]:
    """One token each, as a rank sends them while it decodes."""
    parts = [TokenChunk([token_id], 20, 16) for token_id in token_ids[:-1]]
    return [*parts, TokenChunk(token_ids[-1:], 20, 16, finish_reason)]


def begun(messages: Sequence[RankMessage]) -> tuple[RankStream, Messages]:
    first, *rest = messages
    assert isinstance(first, TokenChunk)
    transport = Messages(rest)
    return RankStream(1, first, aiter(transport), transport.cancel), transport


async def events_of(stream: RankStream, tokenizer: Tokenizer, **options: Any) -> list[Any]:
    """The stream's events, parsed; the last may be the string `[DONE]`."""
    options = {"with_usage": False} | options
    stop = options.pop("stop", ())
    lines = [line async for line in stream_answer(SHAPE, stream, tokenizer.text_stream(stop), **options)]
    data = [line.removeprefix(b"data: ").removesuffix(b"\n\n").decode() for line in lines]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def text_of(events: list[Any]) -> str:
    return "".join(event["choices"][0]["text"] for event in events if event != "[DONE]" and event["choices"])


async def test_whole_and_streamed_are_the_same_text(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(TEXT)
    whole_stream, transport = begun(chunks(token_ids, "length"))
    whole = await whole_answer(SHAPE, whole_stream, tokenizer.text_stream())
    events = await events_of(begun(chunks(token_ids, "length"))[0], tokenizer)
    assert whole["choices"][0]["text"] == text_of(events) == TEXT
    assert whole["choices"][0]["finish_reason"] == events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1] == "[DONE]"
    assert not any("\ufffd" in json.dumps(event, ensure_ascii=False) for event in events)
    assert transport.num_cancelled == 1


async def test_usage_counts_every_token_even_those_without_text(tokenizer: Tokenizer) -> None:
    token_ids = [*tokenizer.encode("Hi"), *tokenizer.eos_token_ids]
    whole = await whole_answer(SHAPE, begun(chunks(token_ids, "stop"))[0], tokenizer.text_stream())
    assert whole["choices"][0]["text"] == "Hi"
    assert whole["usage"]["completion_tokens"] == len(token_ids)
    assert whole["usage"]["prompt_tokens"] == 20
    assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 16
    events = await events_of(begun(chunks(token_ids, "stop"))[0], tokenizer, with_usage=True)
    assert events[-2]["usage"] == whole["usage"]


async def test_an_unfinished_character_at_the_end_is_shown_as_one(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a🙂")[:-1]
    events = await events_of(begun(chunks(token_ids, "length"))[0], tokenizer)
    assert text_of(events).startswith("a\ufffd")
    assert events[-2]["choices"][0]["finish_reason"] == "length"


async def test_nothing_of_a_stop_string_is_sent(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("one, two, three")
    events = await events_of(begun(chunks(token_ids, "stop"))[0], tokenizer, stop=(", thr",))
    assert text_of(events) == "one, two"


async def test_a_stream_that_breaks_off_ends_with_the_error_and_not_with_done(tokenizer: Tokenizer) -> None:
    refusal = Refusal(EngineFailedError("the engine broke"))
    stream, _ = begun([*chunks(tokenizer.encode("Hello"), None), refusal])
    events = await events_of(stream, tokenizer, with_usage=True)
    assert text_of(events[:-1]) == "Hello"
    assert events[-1] == {
        "error": {
            "message": "the engine broke",
            "type": "server_error",
            "param": None,
            "code": "engine_failed",
        }
    }


async def test_an_answer_in_one_piece_that_breaks_off_is_an_error(tokenizer: Tokenizer) -> None:
    stream, _ = begun([*chunks(tokenizer.encode("Hello"), None), Refusal(EngineFailedError("broke"))])
    with pytest.raises(EngineFailedError, match="broke"):
        await whole_answer(SHAPE, stream, tokenizer.text_stream())


@pytest.mark.parametrize("num_sent", [0, 1, 3], ids=["before the headers", "before the text", "in the text"])
async def test_hanging_up_on_a_stream_cancels_the_rank(tokenizer: Tokenizer, num_sent: int) -> None:
    stream, transport = begun(chunks(tokenizer.encode(TEXT), "length"))
    answer = AnswerEvents(SHAPE, stream, tokenizer.text_stream(), with_usage=False)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        if len(sent) == num_sent:
            await asyncio.Event().wait()
        sent.append(message)

    async def receive() -> Message:
        """The client's hanging up, once it has read `num_sent` messages."""
        while len(sent) < num_sent:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    await answer({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
    assert len(sent) == num_sent
    assert transport.num_cancelled == 1


async def test_only_the_first_chunk_of_a_chat_says_who_speaks(tokenizer: Tokenizer) -> None:
    stream, _ = begun(chunks(tokenizer.encode("one, two"), "length"))
    shape = AnswerShape("chat", "1", "m")
    lines = [line async for line in stream_answer(shape, stream, tokenizer.text_stream(), with_usage=False)]
    deltas = [json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"] for line in lines[:-1]]
    assert ["role" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert "".join(delta.get("content", "") for delta in deltas) == "one, two"


async def test_a_rank_that_dies_after_the_last_token_spoils_nothing(tokenizer: Tokenizer) -> None:
    messages = [*chunks(tokenizer.encode("Hello"), "stop"), Refusal(EngineFailedError("too late"))]
    whole = await whole_answer(SHAPE, begun(messages)[0], tokenizer.text_stream())
    assert whole["choices"][0]["text"] == "Hello"


async def test_a_stream_that_just_ends_is_an_error_and_not_a_short_answer(tokenizer: Tokenizer) -> None:
    events = await events_of(begun(chunks(tokenizer.encode("Hello"), None))[0], tokenizer)
    assert events[-1]["error"]["code"] == "rank_died"
