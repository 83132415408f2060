"""Messages of Anthropic's API out of a rank's tokens, with the real tokenizer, read by Anthropic's client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from app.api.anthropic.answer import MessageShape
from app.api.anthropic.events import sse
from app.api.anthropic.thoughts import MARK, thoughts_of
from app.deployments.ingress.answers.anthropic import stream_message, whole_message
from app.deployments.messages import Refusal
from app.errors import EngineFailedError
from app.generation import TokenChunk
from app.text.output.formats import PLAIN_OUTPUT, OutputFormat
from app.text.text_stream import TextStream
from app.text.tokenizer import Tokenizer
from tests.support.fake_deployments import begun

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
SHAPE = MessageShape("1", "m", max_tokens=50)
CALLS = OutputFormat("hermes", frozenset({"f"}), "possible")
CALL = '<tool_call>{"name": "f", "arguments": {"city": "Paris", "n": 2}}</tool_call>'
THOUGHTS = "<think>Zwölf 🙂</think>"


@pytest.fixture(scope="session")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


class Answers:
    """What the client gets, whole and streamed, of the same tokens."""

    def __init__(self, tokenizer: Tokenizer, text: str, end: str = "stop", **options: Any) -> None:
        token_ids = tokenizer.encode(text)
        self._chunks = [TokenChunk([each], 20, 16) for each in token_ids[:-1]]
        self._chunks.append(TokenChunk(token_ids[-1:], 20, 16, end))
        self._text: Any = lambda: tokenizer.text_stream(options.get("stop", ()))
        self._shape = options.get("shape", SHAPE)
        self._output = options.get("output", PLAIN_OUTPUT)

    async def whole(self) -> dict[str, Any]:
        stream = (await begun(self._chunks)).stream
        text: TextStream = self._text()
        answer: dict[str, Any] = await whole_message(self._shape, self._output, stream, text)
        Message.model_validate(answer)
        return answer

    async def events(self) -> list[dict[str, Any]]:
        stream = (await begun(self._chunks)).stream
        return [
            event
            async for each in stream_message(self._shape, self._output, stream, self._text())
            for event in events_in(each)
        ]


def events_in(sent: bytes) -> list[dict[str, Any]]:
    """Server-sent events, each named by its type."""
    found = []
    for each in sent.decode().removesuffix("\n\n").split("\n\n"):
        name, data = each.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def as_client_reads(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that Anthropic's client makes of them."""
    for event in events:
        if event["type"] != "ping":
            EVENT.validate_python(event)
    answer = httpx2.Response(
        200, content=b"".join(map(sse, events)), headers={"content-type": "text/event-stream"}
    )
    transport = httpx2.MockTransport(lambda request: answer)
    with (
        httpx2.Client(transport=transport) as http,
        anthropic.Anthropic(base_url="http://a", api_key="none", http_client=http) as client,
        client.messages.stream(max_tokens=1, messages=[], model="m") as stream,
    ):
        shown: dict[str, Any] = stream.get_final_message().model_dump(exclude_none=True)
        return shown


@pytest.mark.parametrize(
    ("text", "types", "reason"),
    [
        ("Hello there.", ["text"], "end_turn"),
        (f"{THOUGHTS}Hello", ["thinking", "text"], "end_turn"),
        (CALL, ["tool_use"], "tool_use"),
        (f"{THOUGHTS}I look. {CALL}\n{CALL}", ["thinking", "text", "tool_use", "tool_use"], "tool_use"),
    ],
)
async def test_a_message_is_the_same_whole_and_streamed(
    tokenizer: Tokenizer, text: str, types: list[str], reason: str
) -> None:
    answers = Answers(tokenizer, text, output=CALLS)
    whole, streamed = await answers.whole(), as_client_reads(await answers.events())
    assert [block["type"] for block in whole["content"]] == types
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, None)
    assert (whole["id"], whole["type"], whole["role"], whole["model"]) == (
        "msg_1",
        "message",
        "assistant",
        "m",
    )
    whole.pop("stop_sequence")
    assert streamed["content"] == whole["content"]
    assert streamed == whole
    calls = [block for block in whole["content"] if block["type"] == "tool_use"]
    assert all(call["input"] == {"city": "Paris", "n": 2} for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)


async def test_every_block_is_opened_and_closed_in_order(tokenizer: Tokenizer) -> None:
    events = await Answers(tokenizer, f"{THOUGHTS}I look. {CALL}", output=CALLS).events()
    types = [event["type"] for event in events]
    assert types[:2] == ["message_start", "ping"]
    assert types[-2:] == ["message_delta", "message_stop"]
    open_block, next_index = None, 0
    for event in events[2:-2]:
        match event["type"]:
            case "content_block_start":
                assert (open_block, event["index"]) == (None, next_index)
                open_block, next_index = event["index"], next_index + 1
            case "content_block_stop":
                assert event["index"] == open_block
                open_block = None
            case _:
                assert event["index"] == open_block
    assert (open_block, next_index) == (None, 3)


async def test_cached_tokens_are_no_input_tokens(tokenizer: Tokenizer) -> None:
    answers = Answers(tokenizer, "Hello there.")
    cached = {"input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 16}
    whole, events = await answers.whole(), await answers.events()
    assert whole["usage"] == cached | {"output_tokens": len(tokenizer.encode("Hello there."))}
    assert events[0]["message"]["usage"] == cached | {"output_tokens": 0}
    assert events[-2]["usage"] == whole["usage"]


async def test_a_stop_sequence_is_named(tokenizer: Tokenizer) -> None:
    answers = Answers(tokenizer, "one two three", stop=("nothing", " three"))
    whole, events = await answers.whole(), await answers.events()
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", " three")
    assert whole["content"] == [{"type": "text", "text": "one two"}]
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": " three"}


@pytest.mark.parametrize(("limit", "reason"), [(2, "max_tokens"), (50, "model_context_window_exceeded")])
async def test_the_limit_and_the_context_are_two_ends(tokenizer: Tokenizer, limit: int, reason: str) -> None:
    shape = MessageShape("1", "m", max_tokens=limit)
    whole = await Answers(tokenizer, "Hello there.", "length", shape=shape).whole()
    assert whole["stop_reason"] == reason


async def test_a_call_that_the_limit_cut_has_the_arguments_that_there_were(tokenizer: Tokenizer) -> None:
    cut = '<tool_call>{"name": "f", "arguments": {"n": 2, "city": "Par'
    answers = Answers(tokenizer, cut, "length", output=CALLS)
    (call,) = (await answers.whole())["content"]
    assert call["input"] == {"n": 2}, "half a string may mean something else"
    assert as_client_reads(await answers.events())["content"][0]["input"] == call["input"]


async def test_thoughts_that_the_client_doesnt_want_are_in_the_signature(tokenizer: Tokenizer) -> None:
    shape = MessageShape("1", "m", max_tokens=50, shows_thoughts=False)
    answers = Answers(tokenizer, f"{THOUGHTS}Hello", shape=shape, output=CALLS)
    thinking, said = (await answers.whole())["content"]
    assert (thinking["thinking"], said["text"]) == ("", "Hello")
    assert thoughts_of("", thinking["signature"], "") == "Zwölf 🙂"
    assert as_client_reads(await answers.events())["content"] == [thinking, said]
    (shown, _) = (await Answers(tokenizer, f"{THOUGHTS}Hello", output=CALLS).whole())["content"]
    assert (shown["thinking"], shown["signature"]) == ("Zwölf 🙂", MARK)


async def test_ids_are_as_the_models_template_takes_them(tokenizer: Tokenizer) -> None:
    (call,) = (await Answers(tokenizer, CALL, output=CALLS).whole())["content"]
    assert call["id"].startswith("toolu_")
    short = MessageShape("1", "m", max_tokens=50, id_chars=9)
    (call,) = (await Answers(tokenizer, CALL, output=CALLS, shape=short).whole())["content"]
    assert len(call["id"]) == 9


async def test_an_answer_that_breaks_off_ends_with_an_error(tokenizer: Tokenizer) -> None:
    first = TokenChunk(tokenizer.encode("Hello"), 20, 16)
    failed = Refusal(EngineFailedError("the engine broke"))
    stream = (await begun([first, failed])).stream
    sent = [
        each
        async for each in stream_message(
            SHAPE, PLAIN_OUTPUT, stream, tokenizer.text_stream(), request_id="r1"
        )
    ]
    (error,) = events_in(sent[-1])
    assert (error["type"], error["request_id"]) == ("error", "r1")
    assert error["error"]["type"] == "api_error"
    assert error["error"]["details"]["error_code"] == "rank_died"
    assert "the engine broke" in error["error"]["message"]
