"""What clients ask about texts through a whole graph: several prompts, echoes with logprobs, tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.graph.serve_graph import ServeGraph

MODEL = "smollm2-135m-instruct"
PROMPTS = ["The capital of France is", "Once upon a time", "2 + 2 ="]


@pytest.fixture
def client(smollm2_graph: ServeGraph) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2_graph.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(smollm2_graph: ServeGraph) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=smollm2_graph.url, timeout=60) as client:
        yield client


def test_several_prompts_are_answered_as_each_by_itself(client: openai.OpenAI) -> None:
    how: Any = {"model": MODEL, "temperature": 0, "max_tokens": 4}
    alone = [client.completions.create(prompt=prompt, **how) for prompt in PROMPTS]
    answer = client.completions.create(prompt=PROMPTS, n=2, **how)
    assert [choice.index for choice in answer.choices] == list(range(6))
    expected = [each.choices[0].text for each in alone for _ in range(2)]
    assert [choice.text for choice in answer.choices] == expected
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in alone if each.usage)
    assert answer.usage.completion_tokens == 24

    with client.completions.create(
        prompt=PROMPTS, **how, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    streamed = ["", "", ""]
    for chunk in chunks[:-1]:
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [each.choices[0].text for each in alone]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == answer.usage.prompt_tokens


def test_the_prompt_at_fault_is_named(http: httpx.Client) -> None:
    refused = http.post("/v1/completions", json={"prompt": ["a", [10**8]], "max_tokens": 1})
    assert refused.status_code == 400
    assert "prompt 1 (from 0)" in refused.json()["error"]["message"]
    long = http.post("/v1/completions", json={"prompt": ["a", "b", [5] * 10_000], "max_tokens": 1})
    assert (long.status_code, long.json()["error"]["param"]) == (400, "prompt.2")


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_logprobs_of_a_prompt_are_the_models(
    client: openai.OpenAI, http: httpx.Client, smollm2_dir: Path, max_tokens: int
) -> None:
    token_ids = http.post("/tokenize", json={"prompt": PROMPTS[0] + " Paris."}).json()["tokens"]
    answer = client.completions.create(
        model=MODEL, prompt=[token_ids], max_tokens=max_tokens, echo=True, logprobs=2, temperature=0
    )
    (choice,) = answer.choices
    assert choice.text.startswith(PROMPTS[0] + " Paris.")
    assert choice.logprobs is not None
    found: Any = choice.logprobs.token_logprobs
    models: Any = AutoModelForCausalLM
    model = models.from_pretrained(smollm2_dir, dtype=torch.float32)
    with torch.inference_mode():
        logprobs = model(torch.tensor([token_ids])).logits[0].log_softmax(-1)
    expected = [float(logprobs[place, token]) for place, token in enumerate(token_ids[1:])]
    assert found[0] is None
    assert found[1 : len(token_ids)] == pytest.approx(expected, abs=2e-3)
    assert len(found) == len(token_ids) + max_tokens
    assert all(math.isfinite(each) for each in found[1:])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == max_tokens


def test_tokens_of_texts_and_chats_and_back(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": "Hello 🙂", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 8192
    back = http.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": "Hello 🙂", "text": "Hello 🙂"}
    messages = [{"role": "user", "content": "Hello"}]
    chat = http.post("/tokenize", json={"messages": messages, "model": MODEL, "opts": 1})
    assert chat.headers["x-kvbeacon-ignored-fields"] == "opts"
    asked = http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert chat.json()["count"] == asked.json()["usage"]["prompt_tokens"]
    text = http.post("/detokenize", json={"tokens": chat.json()["tokens"]}).json()["prompt"]
    assert text.endswith("<|im_start|>assistant\n")
    several = http.post("/tokenize", json={"prompt": ["a", "b c"]}).json()
    assert several["count"] == [len(each) for each in several["tokens"]]
    assert http.post("/tokenize", json={"prompt": "a", "model": "other"}).status_code == 404
    assert http.post("/tokenize", content=json.dumps({"prompt": 5})).status_code == 400


@pytest.mark.parametrize(
    "fault", [{"model": "other"}, {"temperature": 5}, {"logit_bias": {"999999": 1}}, {"echo": 5}]
)
def test_an_error_tells_of_ignored_fields_too(http: httpx.Client, fault: dict[str, Any]) -> None:
    answer = http.post("/v1/completions", json={"opts": 1, "prompt": "a", "max_tokens": 1, **fault})
    assert answer.status_code in (400, 404)
    assert answer.headers["x-kvbeacon-ignored-fields"] == "opts"


def test_what_it_is_and_where_its_metrics_are(http: httpx.Client) -> None:
    assert http.get("/version").json()["version"]
    answer = http.get("/metrics")
    assert answer.status_code == 404
    assert "Prometheus" in answer.json()["error"]["message"]


def test_the_document_describes_what_is_answered(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()

    def check(name: str, value: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.validate(value, schema)

    check("ModelList", http.get("/v1/models").json())
    check("Tokens", http.post("/tokenize", json={"prompt": "a", "return_token_strs": True}).json())
    check(
        "Generated",
        http.post("/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 1}}).json(),
    )
    asked = {"max_tokens": 1, "return_token_ids": True}
    check("TextCompletion", http.post("/v1/completions", json={"prompt": PROMPTS, **asked}).json())
    messages = [{"role": "user", "content": "a"}]
    chat = {"messages": messages, "logprobs": True, **asked}
    check("ChatCompletion", http.post("/v1/chat/completions", json=chat).json())
    check("Error", http.post("/v1/chat/completions", json={}).json())
    assert http.get("/docs").headers["content-type"].startswith("text/html")
