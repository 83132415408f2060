"""OpenAI's Responses API as its own client and plain HTTP see it, on the real model and on a random one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.support.graph.exchanges import refused
from tests.support.graph.serve_graph import ServeGraph
from tests.support.response_events import Json, checked_response

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "London"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True},
    {
        "type": "namespace",
        "name": "clock",
        "description": "",
        "tools": [{"type": "function", "name": "now", "parameters": CITY}],
    },
    {
        "type": "custom",
        "name": "note",
        "format": {"type": "grammar", "syntax": "regex", "definition": '"[a-c]{3}"\n'},
    },
]


@pytest.fixture
def client(smollm2_graph: ServeGraph) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2_graph.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def calling(tiny_graph: ServeGraph) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_graph.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def streamed(client: openai.OpenAI, **fields: Any) -> Json:
    """The response of a stream that is as it must be."""
    fields = {"model": None, "stream": True, **fields}
    with client.responses.create(**fields) as stream:
        return checked_response([event.to_dict() for event in stream])


def test_a_response_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.responses.create(input=QUESTION, temperature=0, metadata={"a": "b"})
    assert (whole.output_text, whole.status, whole.metadata) == (ANSWER, "completed", {"a": "b"})
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (37, 8)
    Response.model_validate(whole.to_dict())
    response = streamed(client, input=[{"role": "user", "content": QUESTION}], temperature=0)
    assert response["output"][0]["content"][0]["text"] == ANSWER
    assert response["usage"]["input_tokens_details"]["cached_tokens"] > 0


def test_the_clients_own_helper_reads_the_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="smollm2-135m-instruct", input=QUESTION, temperature=0) as stream:
        assert "".join(each.delta for each in stream if each.type == "response.output_text.delta") == ANSWER
        assert stream.get_final_response().output_text == ANSWER


def test_the_limit_makes_it_incomplete(client: openai.OpenAI) -> None:
    response = streamed(client, input=QUESTION, temperature=0, max_output_tokens=3)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["content"][0]["text"] == "The capital of"


def test_json_by_a_schema_and_logprobs(client: openai.OpenAI) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "city", "schema": CITY}}
    include: Any = ["message.output_text.logprobs"]
    response = streamed(client, input=QUESTION, text=text, include=include, top_logprobs=1, temperature=0)
    said = response["output"][0]["content"][0]
    assert json.loads(said["text"])["city"] in ("Paris", "London")
    assert len(said["logprobs"]) == response["usage"]["output_tokens"]
    assert len(said["logprobs"][0]["top_logprobs"]) == 1


def test_a_conversation_goes_on_from_a_stored_response(client: openai.OpenAI) -> None:
    first = client.responses.create(input=QUESTION, temperature=0)
    second = client.responses.create(input="And of Spain?", previous_response_id=first.id, temperature=0)
    sent: Any = [
        {"role": "user", "content": QUESTION},
        *(item.to_dict() for item in first.output),
        {"role": "user", "content": "And of Spain?"},
    ]
    same = client.responses.create(input=sent, temperature=0, store=False)
    assert second.output_text == same.output_text
    assert (second.previous_response_id, second.to_dict()["store"]) == (first.id, True)
    assert second.usage is not None
    assert same.usage is not None
    assert second.usage.input_tokens == same.usage.input_tokens

    assert client.responses.retrieve(second.id).output_text == second.output_text
    items = client.responses.input_items.list(second.id)
    asked = [{"type": "input_text", "text": "And of Spain?"}]
    assert [item.to_dict()["content"] for item in items] == [asked]
    reference: Any = [
        {"type": "item_reference", "id": first.output[0].id},
        {"role": "user", "content": "Why?"},
    ]
    assert client.responses.create(input=reference, max_output_tokens=2).status == "incomplete"

    client.responses.delete(first.id)
    for missing in (first.id, second.id, same.id, "resp_none"):
        with pytest.raises(openai.BadRequestError) as refusal:
            client.responses.create(input="a", previous_response_id=missing)
        assert (refusal.value.param, refusal.value.code) == (
            "previous_response_id",
            "previous_response_not_found",
        )
    for missing in (first.id, same.id):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(missing)


@pytest.mark.parametrize(
    ("choice", "kind", "name"),
    [
        ({"type": "function", "name": "get_weather"}, "function_call", "get_weather"),
        ({"type": "function", "name": "now", "namespace": "clock"}, "function_call", "now"),
        ({"type": "custom", "name": "note"}, "custom_tool_call", "note"),
    ],
    ids=["function", "namespace", "custom"],
)
def test_a_call_that_is_required_comes_and_its_result_is_taken(
    calling: openai.OpenAI, choice: Any, kind: str, name: str
) -> None:
    fields: Any = {
        "input": QUESTION,
        "tools": TOOLS,
        "tool_choice": choice,
        "store": False,
    }
    fields["extra_body"] = {"seed": 5}
    response = streamed(calling, **fields)
    whole = calling.responses.create(**fields)
    (call,) = response["output"]
    assert (call["type"], call["name"]) == (kind, name)
    if kind == "custom_tool_call":
        assert call["input"][0] == '"'
        assert call["input"].endswith('"\n')
    else:
        assert json.loads(call["arguments"])["city"] in ("Paris", "London")
    assert call.get("namespace") == choice.get("namespace")
    (same,) = whole.to_dict()["output"]
    assert {**same, "id": "", "call_id": ""} == {**call, "id": "", "call_id": ""}

    result = {"type": f"{kind}_output", "call_id": call["call_id"], "output": "18 degrees"}
    following: Any = [{"role": "user", "content": QUESTION}, call, result]
    last = calling.responses.create(input=following, tools=TOOLS, max_output_tokens=4)
    assert last.usage is not None
    assert last.usage.output_tokens == 4


def test_headers_and_errors(smollm2_graph: ServeGraph) -> None:
    body = {"input": "a", "max_output_tokens": 2, "opts": 1, "reasoning": {"summary": "auto"}, "store": False}
    answer = smollm2_graph.http.post("/v1/responses", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-kvbeacon-ignored-fields"] == "opts, reasoning.summary"
    assert answer.headers["x-kvbeacon-cache"].startswith("hit=")
    assert int(answer.headers["x-dp-rank"]) >= 0
    error = smollm2_graph.http.post("/v1/responses", json={"input": [{"role": "user", "content": 5}]})
    refused(error, 400, param="input.0.content")
    explained = smollm2_graph.http.post("/router/explain", json={"input": "a"})
    assert explained.status_code == 200
    decisions = smollm2_graph.http.get(f"/router/decisions/{answer.json()['id']}")
    assert decisions.status_code == 200
    for path, param in (("resp_0", "response_id"), ("resp_0/input_items?limit=0", "limit")):
        missing = smollm2_graph.http.get(f"/v1/responses/{path}")
        refused(missing, 404 if param == "response_id" else 400, param=param)
    allowed = smollm2_graph.http.options("/v1/responses/resp_0")
    assert allowed.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
