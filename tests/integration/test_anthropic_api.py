"""Anthropic's API through a whole graph, with Anthropic's own client."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.support.graph.exchanges import refused
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import tiny_args
from tests.support.graph.serve_graph import ServeGraph

QUESTION: Any = {"role": "user", "content": "What is the weather in Paris?"}
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "London"]}}, "required": ["city"]}
TOOLS: Any = [
    {"name": name, "input_schema": CITY | {"additionalProperties": False}}
    for name in ("get_weather", "get_time")
]
QUESTION_OF_FRANCE: Any = {
    **{"type": "text", "text": "What is the capital of France?"},
    "cache_control": {"type": "ephemeral"},
}
RANK_0 = {"X-Data-Parallel-Rank": "0"}
SERIAL = itertools.count()


def client_of(graph: ServeGraph) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=graph.url, api_key="none", max_retries=0)


@pytest.fixture
def client(tiny_graph: ServeGraph) -> Iterator[anthropic.Anthropic]:
    with client_of(tiny_graph) as client:
        yield client


def test_a_question_is_answered_whole_and_streamed(smollm2_graph: ServeGraph) -> None:
    asked: Any = {
        "model": "smollm2-135m-instruct",
        "max_tokens": 12,
        "extra_body": {"temperature": 0},
        "extra_headers": RANK_0,
        "messages": [{"role": "user", "content": [QUESTION_OF_FRANCE]}],
    }
    with client_of(smollm2_graph) as client:
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            text = "".join(stream.text_stream)
            streamed = stream.get_final_message()
        counted: Any = {name: asked[name] for name in ("model", "messages")}
        num_tokens = client.messages.count_tokens(**counted).input_tokens
    (block,) = whole.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert [each.model_dump(exclude_none=True) for each in streamed.content] == [
        block.model_dump(exclude_none=True)
    ]
    assert text == block.text
    assert whole.stop_reason == streamed.stop_reason
    for usage in (whole.usage, streamed.usage):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == num_tokens
        assert usage.cache_creation_input_tokens == 0
    assert (streamed.usage.cache_read_input_tokens or 0) % 16 == 0
    assert streamed.usage.cache_read_input_tokens, "the second request finds the first one's blocks"


def test_a_tool_is_called_and_its_result_taken(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 2000, "tools": TOOLS, "extra_body": {"seed": 5}}
    asked["tool_choice"] = {"type": "any", "disable_parallel_tool_use": True}
    answer = client.messages.create(messages=[QUESTION], **asked)
    assert answer.stop_reason == "tool_use"
    (call,) = answer.content
    assert call.type == "tool_use"
    assert call.name in ("get_weather", "get_time")
    assert call.input["city"] in ("Paris", "London")

    with client.messages.stream(messages=[QUESTION], **asked) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.type == "tool_use"
    assert (streamed.name, streamed.input) == (call.name, call.input)

    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"}
    messages = [QUESTION, answer.to_param(), {"role": "user", "content": [result]}]
    last = client.messages.create(messages=messages, model="tiny", tools=TOOLS, max_tokens=4)
    assert last.usage.output_tokens > 0


def test_a_stop_sequence_ends_an_answer(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 20, "messages": [QUESTION], "extra_body": {"seed": 5}}
    (said,) = client.messages.create(**asked).content
    assert said.type == "text"
    stop = said.text[3:5]
    answer = client.messages.create(**asked, stop_sequences=[stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_every_error_has_anthropics_shape(tiny_graph: ServeGraph, path: str) -> None:
    def ask(**fields: Any) -> httpx.Response:
        return tiny_graph.http.post(path, json={"max_tokens": 1, "messages": [QUESTION]} | fields)

    answer = ask()
    assert (answer.status_code, answer.headers["request-id"]) == (200, answer.headers["x-request-id"])
    web = [{"type": "web_search_20250305", "name": "web_search"}]
    refused(ask(tools=web), 400, param="tools.0.type", type="invalid_request_error")
    refused(ask(messages=[]), 400, param="messages")
    refused(ask(model="claude-opus-4-6"), 404, type="not_found_error", code="model_not_found")
    refused(ask(system="a" * 100_000), 413, type="request_too_large")
    refused(tiny_graph.http.get(path), 405, type="invalid_request_error")
    refused(tiny_graph.http.post(path, content=b"{"), 400, code="invalid_json")
    refused(tiny_graph.http.post(f"{path}/none", json={}), 404, code="not_found")


def test_the_client_raises_what_belongs_to_an_error(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="claude-opus-4-6", max_tokens=1, messages=[QUESTION])
    assert caught.value.type == "not_found_error"
    assert caught.value.error_code == "model_not_found"
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]
    long: Any = {"role": "user", "content": "word " * 8500}
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(model="tiny", max_tokens=1, messages=[long])


def test_where_a_message_would_go_is_explained(tiny_graph: ServeGraph) -> None:
    body = {"system": "Be brief.", "messages": [QUESTION], "max_tokens": 1}
    explained = tiny_graph.http.post("/router/explain", json=body)
    assert explained.status_code == 200, explained.text
    assert explained.json()["policy"] == "predicted_ttft"


def turn(graph: ServeGraph, path: str, agent: str, billing: str) -> httpx.Response:
    """A turn of a conversation whose client tells its vendor something in the first line."""
    line = f"x-anthropic-billing-header: cc_version=2.1.332.fb8; cc_entrypoint=cli; cch={billing};"
    if "chat" in path:
        messages = [{"role": "system", "content": f"{line}\n{agent}"}, QUESTION]
        body: dict[str, Any] = {"messages": messages}
    else:
        parts = [{"type": "text", "text": text} for text in (line, agent)]
        body = {"system": parts, "messages": [QUESTION]}
    answer = graph.http.post(path, json=body | {"max_tokens": 1}, headers=RANK_0)
    assert answer.status_code == 200, answer.text
    return answer


def num_cached(answer: httpx.Response) -> int:
    usage = answer.json()["usage"]
    found = usage.get("cache_read_input_tokens")
    number: int = usage["prompt_tokens_details"]["cached_tokens"] if found is None else found
    return number


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
def test_a_line_that_changes_with_every_request_costs_no_prefix(tiny_graph: ServeGraph, path: str) -> None:
    agent = f"You are agent {next(SERIAL)} of {path}. " + "Do what you are asked. " * 40
    first, second = (turn(tiny_graph, path, agent, billing) for billing in ("a1b2c", "d3e4f"))
    assert num_cached(first) < 32
    assert num_cached(second) >= 200
    where = "messages.content" if "chat" in path else "system"
    assert second.headers["x-kvbeacon-ignored-fields"] == f"{where}.x_anthropic_billing_header"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
def test_without_the_rule_it_costs_the_whole_prefix(graphs: Graphs, tiny_model: str, path: str) -> None:
    args = tiny_args(tiny_model)
    args["ingress"]["dropped_system_lines"] = []
    graph = graphs.get({"/": args})
    agent = f"You are agent {next(SERIAL)} of {path}. " + "Do what you are asked. " * 40
    first, second = (turn(graph, path, agent, billing) for billing in ("a1b2c", "d3e4f"))
    assert num_cached(first) < 64
    assert num_cached(second) < 64
    assert "x-kvbeacon-ignored-fields" not in second.headers
