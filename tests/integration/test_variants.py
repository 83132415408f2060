"""Deployments without a descriptor serve requests all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_graph import ServeGraph

MALFORMED = '{"publisher": "zmq", "endpoint": "tcp://127.0.0.1:5557"'


@pytest.fixture(scope="session")
def model_with_bos(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose tokenizer begins every text with a special token, as Llama's does."""
    folder = tmp_path_factory.mktemp("bos") / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))]
    tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str, model_with_bos: str) -> ServeGraph:
    """Applications of one rank each, beside each other in one file."""
    silent = {"model": {"path": tiny_model}, "dp_size": 1, "kv_events_config": None}
    malformed = silent | {"kv_events_config": MALFORMED}
    with_bos = silent | {"model": {"path": model_with_bos}}
    return graphs.get({"/": silent, "/malformed": malformed, "/bos": with_bos})


@pytest.mark.parametrize(("prefix", "config"), [("", None), ("/malformed", MALFORMED)])
def test_without_a_usable_kv_events_config_the_descriptor_is_null_and_everything_else_there(
    graph: ServeGraph, prefix: str, config: str | None
) -> None:
    info = graph.get(f"{prefix}/server_info")
    assert "kv_events" in info
    assert info["kv_events"] is None
    assert info["kv_events_config"] == config
    assert info["publishers"] == [{"rank": 0, "state": "disabled"}]
    assert info["internal_states"][0]["state"] == "ready"
    assert info["dp_size"] == 1
    (known,) = graph.get(f"{prefix}/router/ranks")
    assert known["trust"] == "stale"
    assert known["reason"] == "no events published"


@pytest.mark.parametrize("prefix", ["", "/malformed"])
def test_it_serves_and_still_reuses_its_cache(graph: ServeGraph, prefix: str) -> None:
    body = {"prompt": list(range(100, 200)), "max_tokens": 3}
    answers = [graph.http.post(f"{prefix}/v1/completions", json=body).json() for _ in range(2)]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached == [0, 96]
    # Blocks that a router doesn't know earn no credit; the rank is chosen all the same.
    (row,) = graph.http.post(f"{prefix}/router/explain", json=body).json()["ranks"]
    assert (row["eligible"], row["trust"], row["cached_tokens"]) == (True, "stale", 0)


def test_a_text_begins_as_its_tokenizer_and_a_chat_as_its_template_define(graph: ServeGraph) -> None:
    def num_tokens(path: str, **prompt: Any) -> int:
        answer = graph.http.post(path, json=prompt | {"max_tokens": 1}).json()
        return int(answer["usage"]["prompt_tokens"])

    chat = [{"role": "user", "content": "one two three"}]
    assert num_tokens("/v1/completions", prompt="one two three") == 3
    assert num_tokens("/bos/v1/completions", prompt="one two three") == 4
    assert num_tokens("/bos/v1/completions", prompt=[1, 2, 3]) == 3
    assert num_tokens("/bos/v1/chat/completions", messages=chat) == num_tokens(
        "/v1/chat/completions", messages=chat
    )


def test_a_folder_is_served_under_its_own_name(graph: ServeGraph, tiny_model: str) -> None:
    (model,) = graph.get("/v1/models")["data"]
    assert model["id"] == Path(tiny_model).name
    assert graph.get("/model_info")["model_path"] == tiny_model


def test_a_misconfigured_publisher_is_logged_once(graph: ServeGraph) -> None:
    warnings = [line for line in graph.output().splitlines() if "KV events are misconfigured" in line]
    assert len(warnings) == 1, warnings
    assert "not JSON" in warnings[0]


def test_a_streamed_answer_of_random_tokens_equals_the_whole(graph: ServeGraph) -> None:
    """A random model's output is full of broken characters: the hardest text to stream."""
    body = {"prompt": [500, 501], "max_tokens": 300, "temperature": 2, "ignore_eos": True}

    def whole(seed: int) -> str:
        answer = graph.http.post("/v1/completions", json=body | {"seed": seed}).json()
        return str(answer["choices"][0]["text"])

    def stream(seed: int) -> str:
        fields = body | {"seed": seed, "stream": True}
        with graph.http.stream("POST", "/v1/completions", json=fields) as response:
            return "".join(_text(line) for line in response.iter_lines())

    answers = {seed: whole(seed) for seed in range(6)}
    assert any("\ufffd" in answer for answer in answers.values())
    assert {seed: stream(seed) for seed in answers} == answers


def _text(line: str) -> str:
    if not line or line == "data: [DONE]":
        return ""
    text: str = json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    return text
