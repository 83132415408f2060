"""Calls of tools through a whole graph, with OpenAI's client: a random model has to make them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.graph.serve_graph import ServeGraph

QUESTION: Any = {"role": "user", "content": "What is the weather in Paris?"}
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "London"]}}, "required": ["city"]}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": CITY | {"additionalProperties": False}}}
    for name in ("get_weather", "get_time")
]


@pytest.fixture
def client(tiny_graph: ServeGraph) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_graph.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_time"}}])
def test_a_call_that_is_required_comes_and_its_result_is_taken(client: openai.OpenAI, choice: Any) -> None:
    fields: Any = {
        "model": "tiny",
        "tools": TOOLS,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "seed": 5,
    }
    answer = client.chat.completions.create(messages=[QUESTION], **fields)
    (said,) = answer.choices
    assert said.finish_reason == "tool_calls"
    assert said.message.content is None
    (call,) = said.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name in (("get_weather", "get_time") if choice == "required" else ("get_time",))
    assert json.loads(call.function.arguments)["city"] in ("Paris", "London")

    with client.chat.completions.create(messages=[QUESTION], **fields, stream=True) as stream:
        deltas = [chunk.choices[0] for chunk in stream]
    parts = [part.function for delta in deltas for part in delta.delta.tool_calls or []]
    assert "".join(part.arguments or "" for part in parts if part) == call.function.arguments
    assert deltas[-1].finish_reason == "tool_calls"

    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
    messages = [QUESTION, said.message.model_dump(exclude_unset=True), result]
    last = client.chat.completions.create(messages=messages, model="tiny", tools=TOOLS, max_tokens=4)
    assert last.usage is not None
    assert last.usage.completion_tokens > 0


def test_tools_that_may_be_called_dont_have_to_be(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=[QUESTION], model="tiny", tools=TOOLS, max_tokens=4)
    assert answer.choices[0].finish_reason in ("length", "stop", "tool_calls")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(messages=[QUESTION], model="tiny", tool_choice="required")
    assert refused.value.param == "tool_choice"
