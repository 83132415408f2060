"""What OpenAI's clients rely on in the events of a response, checked event by event."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

Json = dict[str, Any]

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_ENDS = ("response.completed", "response.incomplete", "response.failed")
_DELTAS = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}
_TEXTS = {"function_call": "arguments", "custom_tool_call": "input"}


def checked_response(events: Iterable[Json]) -> Json:
    """The response in which these events end, if they are of OpenAI's types and form.

    Every item is opened and closed, one after the other, before the end; its pieces are its text, and it is
    the same item in the response.
    """
    first, second, *middle, last = list(events)
    for place, event in enumerate((first, second, *middle, last)):
        _EVENT.validate_python(event)
        assert event["sequence_number"] == place
    assert [first["type"], second["type"]] == ["response.created", "response.in_progress"]
    assert last["type"] in _ENDS
    response: Json = last["response"]
    Response.model_validate(response)
    assert response["status"] == last["type"].removeprefix("response.")
    for begun in (first["response"], second["response"]):
        Response.model_validate(begun)
        assert (begun["id"], begun["status"], begun["output"]) == (response["id"], "in_progress", [])
    items: list[Json] = []
    while middle:
        size = next(n for n, event in enumerate(middle) if event["type"] == "response.output_item.done") + 1
        items.append(_checked_item(middle[:size], len(items)))
        middle = middle[size:]
    assert items == response["output"]
    return response


def _checked_item(events: list[Json], place: int) -> Json:
    opened, *inner, closed = events
    assert opened["type"] == "response.output_item.added"
    assert {event["output_index"] for event in events} == {place}
    item: Json = closed["item"]
    kind = item["type"]
    assert opened["item"]["status"] == "in_progress"
    for name in ("id", "type", "call_id", "name"):
        assert opened["item"].get(name) == item.get(name)
    assert {event["item_id"] for event in inner} == {item["id"]}
    has_part = kind in ("message", "reasoning")
    if has_part:
        assert [inner[0]["type"], inner[-1]["type"]] == [
            "response.content_part.added",
            "response.content_part.done",
        ]
        part, inner = inner[-1]["part"], inner[1:-1]
        assert item["content"] == [part] or (kind, part["text"]) == ("reasoning", "")
        whole = part["text"]
    else:
        whole = item[_TEXTS[kind]]
    *pieces, done = inner
    assert {event["type"] for event in pieces} <= {f"{_DELTAS[kind]}.delta"}
    assert done["type"] == f"{_DELTAS[kind]}.done"
    assert "".join(event["delta"] for event in pieces) == whole
    assert done[_TEXTS.get(kind, "text")] == whole
    return item
