"""A response's items and events, out of the parts that a model's output has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.openai.responses import Usage
from app.api.responses.answer import EventWriter, ResponseShape, ResponseUsage
from app.api.responses.call_input import CallInput
from app.api.responses.items import packed_thoughts
from app.api.responses.output import OutputItems
from app.api.responses.request import parse_response
from app.errors import RankDiedError
from app.text.output.parts import CallArguments, CallStart, Part, Text, Thought
from tests.support.response_events import Json, checked_response

BODY = {
    "input": "Hi",
    "instructions": "Be brief.",
    "metadata": {"a": "b"},
    "tools": [
        {"type": "function", "name": "f", "parameters": {"type": "object"}},
        {"type": "custom", "name": "patch"},
        {
            "type": "namespace",
            "name": "space",
            "description": "d",
            "tools": [{"type": "function", "name": "g"}],
        },
    ],
}
REQUEST = parse_response(json.dumps(BODY).encode())
OFFERS = {offer.name: offer for offer in REQUEST.offers}


def answer(
    parts: Sequence[Part],
    finish_reason: str | None = "stop",
    *,
    entries: Sequence[Json] = (),
    packs: bool = False,
) -> Json:
    """The response whose output has these parts, `entries` with the first, if its stream is well-formed."""
    shape = ResponseShape("1", "m", REQUEST.echo())
    output = OutputItems("1", OFFERS, id_chars=None, packs_thoughts=packs)
    events: list[Json] = [
        {"type": f"response.{name}", "response": shape.begun()} for name in ("created", "in_progress")
    ]
    for place, part in enumerate(parts):
        events += output.take([part], entries if place == 0 else ())
    if finish_reason is None:
        events += output.break_off()
        response = shape.failed(output.items, RankDiedError("rank 1 was lost"))
    else:
        events += output.end("incomplete" if finish_reason == "length" else "completed")
        response = shape.whole(output.items, ResponseUsage(Usage(5, 2, 3)), finish_reason)
    events.append({"type": f"response.{response['status']}", "response": response})
    writer = EventWriter()
    lines = [writer.written(event).split(b"\n") for event in events]
    assert [line[0].decode() for line in lines] == [f"event: {event['type']}" for event in events]
    return checked_response(json.loads(line[1].removeprefix(b"data: ")) for line in lines)


def test_a_text_is_a_message() -> None:
    response = answer([Text("Hel"), Text("lo")])
    (message,) = response["output"]
    assert (message["status"], message["content"][0]["text"]) == ("completed", "Hello")
    assert (response["instructions"], response["metadata"]) == ("Be brief.", {"a": "b"})
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 2
    assert response["usage"]["total_tokens"] == 8


def test_nothing_is_a_message_too() -> None:
    (message,) = answer([])["output"]
    assert message["content"][0]["text"] == ""


def test_thoughts_text_and_calls_are_items_of_their_own() -> None:
    call = [CallArguments(0, '{"a": '), CallArguments(0, "1}")]
    parts: list[Part] = [
        Thought("Hm"),
        Thought("."),
        Text("So:"),
        CallStart(0, "f"),
        *call,
        Text("\n"),
        CallStart(1, "space__g"),
    ]
    thoughts, message, first, second = answer(parts)["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert thoughts["encrypted_content"] is None
    assert message["content"][0]["text"] == "So:"
    assert (first["type"], first["name"], first["arguments"]) == ("function_call", "f", '{"a": 1}')
    assert (second["name"], second["namespace"]) == ("g", "space")
    assert len({each["id"] for each in (thoughts, message, first, second)}) == 4
    assert first["call_id"] != second["call_id"]


def test_a_custom_tool_gets_a_text() -> None:
    written = json.dumps({"input": 'a "b"\n\\ é 😀'})
    pieces: list[Part] = [CallArguments(0, character) for character in written]
    (call,) = answer([CallStart(0, "patch"), *pieces])["output"]
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "patch", 'a "b"\n\\ é 😀')


def test_what_the_limit_cuts_is_incomplete() -> None:
    response = answer([Text("a"), CallStart(0, "f"), CallArguments(0, '{"a')], "length")
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )


@pytest.mark.parametrize("parts", [[], [Text("a")], [Thought("a")], [CallStart(0, "f")]])
def test_an_error_closes_what_is_open(parts: list[Part]) -> None:
    response = answer(parts, None)
    assert response["error"]["message"] == "rank 1 was lost"
    assert [item["status"] for item in response["output"]] == ["incomplete"] * len(parts)


def test_thoughts_come_in_a_form_that_every_client_sends_back() -> None:
    thoughts, _ = answer([Thought("Hm.")], packs=True)["output"]
    packed = thoughts["encrypted_content"]
    echo = {"type": "reasoning", "id": "x", "summary": [], "encrypted_content": packed}
    request = parse_response(json.dumps({"input": [echo, {"role": "user", "content": "a"}]}).encode())
    assert request.chat().messages[0].fields == {"reasoning_content": "Hm."}
    assert packed == packed_thoughts("Hm.")


def test_logprobs_are_those_of_the_text() -> None:
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    said = answer([Text("a"), Text("b")], entries=[entry])["output"][0]["content"][0]
    assert said["logprobs"] == [entry]
    _, message = answer([Thought("a"), Text("b")], entries=[entry])["output"]
    assert message["content"][0]["logprobs"] == []


@given(text=st.text(max_size=12), ascii_only=st.booleans(), space=st.sampled_from(["", " ", "\n "]))
def test_an_input_is_the_same_wherever_its_arguments_are_cut(text: str, ascii_only: bool, space: str) -> None:
    quoted = json.dumps(text, ensure_ascii=ascii_only)
    written = f'{space}{{{space}"input"{space}:{space}{quoted}{space}}}'
    for cut in range(len(written) + 1):
        reader = CallInput()
        assert reader.push(written[:cut]) + reader.push(written[cut:]) + reader.flush() == text
    reader = CallInput()
    assert "".join(map(reader.push, written)) + reader.flush() == text


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain text", "plain text"),
        ('{"other": 1}', '{"other": 1}'),
        ('{"more": 1, "input": "a"}', "a"),
        ('{"input": 5}', '{"input": 5}'),
        ('{"inp', '{"inp'),
        ('{"input": "cut', "cut"),
        ('{"input": "\\ud83d', "\N{REPLACEMENT CHARACTER}"),
        ('{"input": "\\ud83dx"}', "\N{REPLACEMENT CHARACTER}x"),
        ('{"input": "\\udc00"}', "\N{REPLACEMENT CHARACTER}"),
        ("", ""),
    ],
)
def test_arguments_of_another_form_are_an_input_too(written: str, shown: str) -> None:
    reader = CallInput()
    assert "".join(map(reader.push, written)) + reader.flush() == shown


def test_whatever_the_parts_the_events_are_well_formed() -> None:
    kinds: list[Any] = [Thought("t"), Text("s"), Text(" "), CallStart(0, "f"), CallStart(0, "patch")]
    for first in kinds:
        for second in kinds:
            for third in kinds:
                answer([first, second, third])
