"""OpenAI's API as its own client and plain HTTP see it, on the real model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.graph.serve_config import Json
from tests.support.graph.serve_graph import ServeGraph

MODEL = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture
def client(smollm2_graph: ServeGraph) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2_graph.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def fresh_salt() -> Json:
    """Two requests with it never share cached blocks, so that they are computed in the same way."""
    return {"cache_salt": f"{random.getrandbits(64):x}"}


def test_chat_in_one_piece(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)
    assert answer.usage.total_tokens == 45


def test_chat_as_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    *parts, usage = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == ANSWER
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert len(parts) > 6, "token by token"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 8
    assert {(chunk.id, chunk.object) for chunk in chunks} == {(chunks[0].id, "chat.completion.chunk")}


def test_text_in_one_piece_and_as_a_stream(client: openai.OpenAI) -> None:
    fields: Json = {"model": MODEL, "prompt": "One, two, three,", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**fields)
    with client.completions.create(**fields, stream=True) as stream:
        parts = list(stream)
    assert whole.choices[0].text.startswith(" four, five")
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert whole.choices[0].finish_reason == parts[-1].choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8


def test_several_samples_of_one_prompt(client: openai.OpenAI) -> None:
    fields: Json = {"model": MODEL, "prompt": "Once upon a time" * 8, "max_tokens": 8, "seed": 7, "n": 3}
    whole = client.completions.create(**fields, extra_body=fresh_salt())
    texts = [choice.text for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    assert whole.usage.prompt_tokens == 32, "the prompt counts once"
    parts = ["", "", ""]
    with client.completions.create(**fields, stream=True, extra_body=fresh_salt()) as stream:
        for part in stream:
            parts[part.choices[0].index] += part.choices[0].text
    assert parts == texts


def test_a_prompt_as_token_ids_is_the_same_prompt(client: openai.OpenAI, smollm2_graph: ServeGraph) -> None:
    def text(prompt: Any) -> str:
        answer = client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=6, temperature=0, extra_body=fresh_salt()
        )
        return answer.choices[0].text

    follower_ids = [504, 3575, 282, 4649, 314]  # "The capital of France is"
    assert text(follower_ids) == text("The capital of France is")


def test_an_answer_without_a_limit_ends_by_itself(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=None)
    assert answer.choices[0].message.content == ANSWER


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: openai.OpenAI) -> None:
    def answer(stop: Any) -> tuple[str | None, str | None]:
        choice = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, stop=stop
        ).choices[0]
        return choice.message.content, choice.finish_reason

    # Across a token border, and of two the one that comes first.
    assert answer("l of Fr") == ("The capita", "stop")
    assert answer(["Paris", " France"]) == ("The capital of", "stop")
    assert answer("Berlin") == (ANSWER, "stop")


def test_a_stop_string_is_not_in_a_stream_either(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stop="l of Fr", stream=True
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "The capita"


def test_a_stop_token_ends_the_answer(client: openai.OpenAI) -> None:
    fields: Json = {"model": MODEL, "prompt": "One, two, three,", "max_tokens": 8, "temperature": 0}
    comma = 28
    answer = client.completions.create(**fields, extra_body={"stop_token_ids": [comma]})
    assert answer.choices[0].text.rstrip(",") == " four"
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_max_tokens(client: openai.OpenAI, limit: str) -> None:
    limits: Json = {limit: 3}
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, **limits)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_seed_gives_the_same_answer_again(client: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        answer = client.completions.create(
            model=MODEL,
            prompt="Once upon a time",
            max_tokens=24,
            temperature=1,
            seed=seed,
            extra_body=fresh_salt(),
        )
        return answer.choices[0].text

    first = [text(seed) for seed in (1, 2, 3)]
    assert [text(seed) for seed in (1, 2, 3)] == first
    assert len(set(first)) > 1


def test_json_by_a_schema_with_logprobs(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"enum": ["London", "Paris"]},
            "population": {"type": "integer", "minimum": 0, "maximum": 99999999},
        },
        "required": ["city", "population"],
        "additionalProperties": False,
    }
    fields: Json = {
        "model": MODEL,
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 80,
        "logprobs": True,
        "top_logprobs": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "capital", "schema": schema}},
    }
    whole = client.chat.completions.create(**fields, extra_body=fresh_salt())
    choice = whole.choices[0]
    assert choice.finish_reason == "stop"
    value = json.loads(choice.message.content or "")
    assert (value["city"], set(value)) == ("Paris", {"city", "population"})
    assert 0 <= value["population"] <= 99999999

    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert whole.usage is not None
    assert len(entries) == whole.usage.completion_tokens
    assert b"".join(bytes(entry.bytes or []) for entry in entries).decode() == choice.message.content
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    assert all(entry.logprob <= entry.top_logprobs[0].logprob <= 0 for entry in entries)

    with client.chat.completions.create(**fields, extra_body=fresh_salt(), stream=True) as stream:
        parts = [chunk.choices[0] for chunk in stream]
    assert "".join(part.delta.content or "" for part in parts) == choice.message.content
    streamed = [entry for part in parts if part.logprobs for entry in part.logprobs.content or []]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]

    schema["type"] = "strange"
    with pytest.raises(openai.BadRequestError, match="Invalid type: strange") as refused:
        client.chat.completions.create(**fields)
    assert refused.value.param == "response_format.json_schema.schema"


def test_streamed_unicode_equals_the_whole(client: openai.OpenAI) -> None:
    prompt = "".join(f"{number}. {'🙃🙂'[number % 2]} smile\n" for number in range(1, 7)) + "7."
    fields: Json = {"model": MODEL, "prompt": prompt, "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**fields, extra_body=fresh_salt()).choices[0].text
    with client.completions.create(**fields, extra_body=fresh_salt(), stream=True) as stream:
        parts = [chunk.choices[0].text for chunk in stream]
    assert "".join(parts) == whole
    assert any(ord(character) > 0xFFFF for character in whole), f"{whole!r}: no character of several tokens"
    # The limit of tokens may cut the last character. The last chunk of all has no text.
    assert not any("\ufffd" in part for part in [part for part in parts if part][:-1])


def test_a_stream_is_server_sent_events_that_end_with_done(smollm2_graph: ServeGraph) -> None:
    body = {"prompt": "Hello", "max_tokens": 3, "stream": True}
    with smollm2_graph.http.stream("POST", "/v1/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-dp-rank"] in ("0", "1")
    assert response.headers["x-request-id"]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines[:-1])


def test_a_clients_request_id_comes_back(smollm2_graph: ServeGraph) -> None:
    answer = smollm2_graph.http.get("/health", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError, match="nonsense"):
        client.models.retrieve("nonsense")
    assert (model.id, model.object) == (MODEL, "model")
    assert model.model_dump()["max_model_len"] == 8192


def test_health_and_model_info(smollm2_graph: ServeGraph) -> None:
    health = smollm2_graph.get("/health")
    ((router, ranks),) = {(each["router"], len(each["ranks"])) for each in smollm2_graph.get("/router/views")}
    assert ranks == 2
    known = {"ranks": 2, "missing": [], "router": router}
    assert health == {"status": "ok", **known, "routers": [known]}
    info = smollm2_graph.get("/model_info")
    assert info == smollm2_graph.get("/get_model_info")
    assert info["model_path"] == info["served_model_name"] == MODEL
    assert info["max_model_len"] == 8192


def test_server_info_and_its_old_name(smollm2_graph: ServeGraph) -> None:
    info = smollm2_graph.get("/server_info")
    assert info["kv_events"]["dp_size"] == info["dp_size"] == 2
    assert info["kv_events_config"] == smollm2_graph.config["applications"][0]["args"]["kv_events_config"]
    assert [state["dp_rank"] for state in info["internal_states"]] == [0, 1]
    assert len({state["pid"] for state in info["internal_states"]}) == 2
    base = info["kv_events"]["endpoint_port_base"]
    assert [each["event_port"] for each in info["publishers"]] == [base, base + 1]
    assert [each["state"] for each in info["publishers"]] == ["publishing"] * 2
    old_name = smollm2_graph.get("/get_server_info")
    assert old_name["kv_events"] == info["kv_events"]
    assert old_name.keys() == info.keys()
