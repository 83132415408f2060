"""What a client reads when a request can't be served: the status, and OpenAI's error object."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.support.graph.exchanges import refused
from tests.support.graph.serve_graph import ServeGraph
from tests.support.graph.streams import Streams

CHAT: Any = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
TEXT: Any = {"prompt": "Hello", "max_tokens": 1}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_field_is_told_and_one_that_cant_be_honoured_refused(
    tiny_graph: ServeGraph, path: str, stream: bool
) -> None:
    body = (CHAT if "chat" in path else TEXT) | {"max_token": 3, "stream": stream}
    answer = tiny_graph.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-kvbeacon-ignored-fields"] == "max_token"
    refused(tiny_graph.http.post(path, json=body | {"best_of": 3}), 400, param="best_of")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", 3),
        ("max_tokens", -1),
        ("stream", "yes"),
        ("top_p", 0),
        ("n", 0),
    ],
)
def test_a_wrong_value_is_shown_with_its_field(tiny_graph: ServeGraph, field: str, value: Any) -> None:
    response = tiny_graph.http.post("/v1/completions", json=TEXT | {field: value})
    message = refused(response, 400, param=field, type="invalid_request_error")
    assert field in message
    assert repr(value) in message


def test_a_body_that_is_not_json(tiny_graph: ServeGraph) -> None:
    message = refused(tiny_graph.http.post("/v1/completions", content=b'{"prompt": '), 400)
    assert "JSON" in message


@pytest.mark.parametrize("prompt", ["", []])
def test_a_prompt_without_tokens(tiny_graph: ServeGraph, prompt: Any) -> None:
    refused(tiny_graph.http.post("/v1/completions", json=TEXT | {"prompt": prompt}), 400, param="prompt")


def test_a_token_that_the_model_does_not_have(tiny_graph: ServeGraph) -> None:
    response = tiny_graph.http.post("/v1/completions", json=TEXT | {"prompt": [5, 49152]})
    assert "49151" in refused(response, 400, param="prompt")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_cache_can_ever_hold(tiny_graph: ServeGraph, stream: bool) -> None:
    body = TEXT | {"prompt": [7] * 4097, "stream": stream}
    response = tiny_graph.http.post("/v1/completions", json=body)
    message = refused(response, 400, code="context_length_exceeded")
    assert "4097" in message
    assert "4096" in message


def test_a_prompt_longer_than_the_context(tiny_graph: ServeGraph) -> None:
    response = tiny_graph.http.post("/v1/completions", json=TEXT | {"prompt": [7] * 8192})
    assert "8192" in refused(response, 400, code="context_length_exceeded")


def test_another_model(tiny_graph: ServeGraph) -> None:
    with (
        openai.OpenAI(base_url=f"{tiny_graph.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.NotFoundError) as caught,
    ):
        client.completions.create(model="gpt-4o", prompt="Hello")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "'gpt-4o'" in caught.value.message
    assert "'tiny' or 'tiny-alias'" in caught.value.message


def test_another_path(tiny_graph: ServeGraph) -> None:
    message = refused(tiny_graph.http.get("/v1/embeddings"), 404, code="not_found")
    assert "/v1/embeddings" in message


def test_another_method(tiny_graph: ServeGraph) -> None:
    assert "GET" in refused(tiny_graph.http.get("/v1/completions"), 405)


def test_a_body_beyond_the_limit(tiny_graph: ServeGraph) -> None:
    response = tiny_graph.http.post("/v1/completions", json=TEXT | {"prompt": "a" * 100_000})
    assert "100000" in refused(response, 413, code="request_too_large")


@pytest.mark.parametrize("rank", ["99", "2", "-1"])
def test_a_rank_that_does_not_exist(tiny_graph: ServeGraph, rank: str) -> None:
    response = tiny_graph.http.post("/v1/completions", json=TEXT, headers={"X-Data-Parallel-Rank": rank})
    message = refused(response, 400)
    assert rank in message
    assert "0 to 1" in message


@pytest.mark.parametrize("rank", ["one", "1.5", ""])
def test_a_rank_that_is_no_integer(tiny_graph: ServeGraph, rank: str) -> None:
    response = tiny_graph.http.post("/v1/completions", json=TEXT, headers={"X-Data-Parallel-Rank": rank})
    assert repr(rank) in refused(response, 400, param="X-Data-Parallel-Rank")


@pytest.mark.parametrize("session", ["", "a,b", "s" * 257])
def test_a_session_that_is_no_name(tiny_graph: ServeGraph, session: str) -> None:
    response = tiny_graph.http.post("/v1/completions", json=TEXT, headers={"x-session-id": session})
    refused(response, 400, param="x-session-id", code="invalid_session")


async def test_a_full_queue_says_when_to_try_again(tiny_graph: ServeGraph) -> None:
    """3 run and 24 wait on rank 0; rank 1 stays free."""
    scheduler = tiny_graph.config["applications"][0]["args"]["engine"]["scheduler"]
    async with Streams(tiny_graph) as streams:
        await streams.open(scheduler["max_running_requests"], rank=0)
        streams.send(scheduler["max_waiting_requests"], rank=0)
        await streams.until_load(0, num_running_reqs=3, num_waiting_reqs=24)
        one_more = await streams.http.post(
            "/v1/completions", json=TEXT, headers={"X-Data-Parallel-Rank": "0"}
        )
        refused(one_more, 429, type="rate_limit_error", code="queue_full")
        assert 1 <= int(one_more.headers["retry-after"]) <= 60
        elsewhere = await streams.http.post("/v1/completions", json=TEXT)
        assert elsewhere.status_code == 200
        assert elsewhere.headers["x-dp-rank"] == "1"
