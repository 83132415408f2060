"""SGLang's native routes as its clients use them, on real graphs."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.support.deadlines import until, wait_until
from tests.support.graph.exchanges import cached_tokens, new_prompt, refused
from tests.support.graph.serve_config import Json
from tests.support.graph.serve_graph import ServeGraph
from tests.support.graph.streams import LONG, Streams

PROMPT = "The capital of France is"
GREEDY: Json = {"temperature": 0, "max_new_tokens": 8}


def fresh_salt() -> Json:
    """Two requests with it never share cached blocks, so that they are computed in the same way."""
    return {"cache_salt": f"{random.getrandbits(64):x}"}


def generate(graph: ServeGraph, *, rank: int | None = None, **fields: Any) -> Any:
    headers = {} if rank is None else {"X-Data-Parallel-Rank": str(rank)}
    response = graph.http.post("/generate", json={"sampling_params": GREEDY} | fields, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def streamed(graph: ServeGraph, **fields: Any) -> list[Json]:
    """The stream's events without its end."""
    body = {"sampling_params": GREEDY, "stream": True} | fields
    with graph.http.stream("POST", "/generate", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-dp-rank"] in ("0", "1")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def without_latency(answer: Json) -> Json:
    """An answer without what differs between two of the same."""
    info = {name: answer["meta_info"][name] for name in answer["meta_info"] if name not in ("e2e_latency",)}
    return answer | {"meta_info": info | {"request_id": None}}


def test_sglangs_own_example(smollm2_graph: ServeGraph) -> None:
    answer = generate(smollm2_graph, text=PROMPT, sampling_params={"temperature": 0, "max_new_tokens": 32})
    assert answer["text"].startswith(" Paris")
    info = answer["meta_info"]
    assert info["prompt_tokens"] == 5
    assert info["completion_tokens"] == len(answer["output_ids"]) <= 32
    assert info["dp_rank"] in (0, 1)
    assert info["e2e_latency"] > 0


@pytest.mark.parametrize("text", [PROMPT, "1. 🙂 smile\n2. 🙃 smile\n3."])
def test_its_tokens_are_those_of_a_completion(smollm2_graph: ServeGraph, text: str) -> None:
    params = {"temperature": 0, "max_new_tokens": 24}
    ours = generate(
        smollm2_graph,
        text=text,
        sampling_params=params,
        return_logprob=True,
        top_logprobs_num=2,
        return_text_in_logprobs=True,
        **fresh_salt(),
    )
    body = {"prompt": text, "temperature": 0, "max_tokens": 24, "logprobs": 2} | fresh_salt()
    completion = smollm2_graph.http.post("/v1/completions", json=body).json()
    (choice,) = completion["choices"]
    assert ours["text"] == choice["text"]
    assert ours["meta_info"]["finish_reason"]["type"] == choice["finish_reason"]
    entries = ours["meta_info"]["output_token_logprobs"]
    assert [token_id for _, token_id, _ in entries] == ours["output_ids"]
    assert [name for *_, name in entries] == [
        token.removeprefix("bytes:") for token in choice["logprobs"]["tokens"]
    ]
    assert [logprob for logprob, *_ in entries] == choice["logprobs"]["token_logprobs"]
    assert [len(likeliest) for likeliest in ours["meta_info"]["output_top_logprobs"]] == [2] * len(entries)
    usage = completion["usage"]
    assert ours["meta_info"]["prompt_tokens"] == usage["prompt_tokens"]
    assert ours["meta_info"]["completion_tokens"] == usage["completion_tokens"]


def test_token_ids_are_the_same_prompt_as_their_text(smollm2_graph: ServeGraph) -> None:
    text = generate(smollm2_graph, text=PROMPT, rid="a", rank=0, **fresh_salt())
    tokens = generate(smollm2_graph, input_ids=[504, 3575, 282, 4649, 314], rid="a", rank=0, **fresh_salt())
    assert without_latency(text) == without_latency(tokens)
    assert text["meta_info"]["id"] == "a"


def test_a_stream_repeats_itself_or_says_only_what_is_new(smollm2_graph: ServeGraph) -> None:
    fields: Json = {"text": "1. 🙂 smile\n2. 🙃 smile\n3.", "return_logprob": True, "rid": "a"}
    fields |= {"routed_dp_rank": 0}
    whole = generate(smollm2_graph, **fields, **fresh_salt())
    events = streamed(smollm2_graph, **fields, **fresh_salt())
    assert len(events) == 8
    assert without_latency(events[-1]) == without_latency(whole)
    for number, event in enumerate(events, 1):
        assert event["output_ids"] == whole["output_ids"][:number]
        assert len(event["meta_info"]["output_token_logprobs"]) == number
        assert whole["text"].startswith(event["text"])
        assert (event["meta_info"]["finish_reason"] is None) == (number < 8)

    news = streamed(smollm2_graph, **fields, **fresh_salt(), incremental_streaming_output=True)
    assert "".join(event["text"] for event in news) == whole["text"]
    assert [event["output_ids"] for event in news] == [[token_id] for token_id in whole["output_ids"]]
    assert [event["meta_info"]["completion_tokens"] for event in news] == list(range(1, 9))


def test_how_outputs_end(smollm2_graph: ServeGraph) -> None:
    def reason(**params: Any) -> tuple[str, Json]:
        answer = generate(smollm2_graph, text="One, two, three,", sampling_params=GREEDY | params)
        return answer["text"], answer["meta_info"]["finish_reason"]

    assert reason(max_new_tokens=3)[1] == {"type": "length", "length": 3}
    comma = 28
    assert reason(stop_token_ids=[comma])[1] == {"type": "stop", "matched": comma}
    assert reason(stop=["ive", "seven"]) == (" four, f", {"type": "stop", "matched": "ive"})
    text, ended = reason(regex="(yes|no)")
    assert text in ("yes", "no")
    assert ended["type"] == "stop"


def test_several_samples_are_a_list_and_a_list_of_one_prompt_too(smollm2_graph: ServeGraph) -> None:
    params = {"temperature": 1, "sampling_seed": 7, "max_new_tokens": 8, "n": 3}
    answers = generate(
        smollm2_graph, text="Once upon a time", sampling_params=params, rid="a", **fresh_salt()
    )
    assert [answer["meta_info"]["id"] for answer in answers] == ["a_0", "a_1", "a_2"]
    texts = [answer["text"] for answer in answers]
    assert len(set(texts)) == 3
    events = streamed(smollm2_graph, text="Once upon a time", sampling_params=params, **fresh_salt())
    last = {event["index"]: event["text"] for event in events}
    assert [last[index] for index in range(3)] == texts

    (only,) = generate(smollm2_graph, text=[PROMPT], sampling_params=[GREEDY], rid=["b"])
    assert only["meta_info"]["id"] == "b"


def test_a_request_is_pinned_and_its_receipt_found(tiny_graph: ServeGraph) -> None:
    for rank in (1, 0):
        prompt = new_prompt()
        answer = generate(tiny_graph, input_ids=prompt, rank=rank)
        assert answer["meta_info"]["dp_rank"] == rank
        tiny_graph.wait_until_followed()
        again = generate(tiny_graph, input_ids=prompt)
        assert (again["meta_info"]["dp_rank"], again["meta_info"]["cached_tokens"]) == (rank, 96)
        receipt = tiny_graph.get(f"/router/decisions/{answer['meta_info']['request_id']}")
        assert receipt["rank"] == rank
        explained = tiny_graph.http.post("/router/explain", json={"input_ids": prompt}).json()
        assert explained["ranks"][rank]["cached_tokens"] == 96
    wrong = tiny_graph.http.post("/generate", json={"text": "a"}, headers={"X-Data-Parallel-Rank": "2"})
    assert "0 to 1" in refused(wrong, 400, param="X-Data-Parallel-Rank")
    refused(tiny_graph.http.post("/generate", json={"text": "a", "data_parallel_rank": 9}), 400)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text": "a", "lora_path": "x"}, "lora_path"),
        ({"text": ["a", "b"]}, "text"),
        ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "sampling_params.max_new_tokens"),
        ({"text": ""}, "text"),
        ({"input_ids": [7] * 8193}, "input_ids"),
        ({"input_ids": [7] * 4097}, "input_ids"),
        ({"text": "a", "sampling_params": {"regex": "("}}, "sampling_params.regex"),
        ({}, "text"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_named(tiny_graph: ServeGraph, body: Json, param: str, stream: bool) -> None:
    refused(tiny_graph.http.post("/generate", json=body | {"stream": stream}), 400, param=param)


def test_another_model_is_not_served(tiny_graph: ServeGraph) -> None:
    refused(tiny_graph.http.post("/generate", json={"text": "a", "model": "other"}), 404, param="model")
    assert generate(tiny_graph, text="a", model="tiny")["output_ids"]


async def test_a_client_that_disconnects_aborts_its_request(tiny_graph: ServeGraph) -> None:
    body = {
        "input_ids": new_prompt(),
        "sampling_params": {"max_new_tokens": LONG["max_tokens"], "ignore_eos": True, "temperature": 0},
        "stream": True,
        "incremental_streaming_output": True,
        "routed_dp_rank": 0,
    }
    async with Streams(tiny_graph) as streams:
        async with streams.http.stream("POST", "/generate", json=body) as response:
            assert response.headers["x-dp-rank"] == "0"
            lines = response.aiter_lines()
            assert await anext(lines)
            await streams.until_load(0, num_running_reqs=1)

        async def is_idle() -> bool:
            load = await streams.load(0)
            return (load["num_running_reqs"], load["num_waiting_reqs"], load["num_tokens"]) == (0, 0, 0)

        await until(is_idle, "rank 0 idle", 4)


async def test_loads_are_what_the_ranks_report(tiny_graph: ServeGraph) -> None:
    async with Streams(tiny_graph) as streams:
        await streams.open(2, rank=0)
        await streams.until_load(0, num_running_reqs=2)
        answer = (await streams.http.get("/v1/loads?include=core")).json()
        first, second = answer["loads"]
        assert (first["dp_rank"], first["num_running_reqs"], first["max_running_requests"]) == (0, 2, 3)
        assert 0 < first["token_usage"] <= 1
        assert first["num_used_tokens"] == round(first["token_usage"] * first["max_total_num_tokens"])
        assert (second["dp_rank"], second["num_running_reqs"], second["num_used_tokens"]) == (1, 0, 0)
        assert answer["aggregate"]["total_running_reqs"] == 2
        (one,) = (await streams.http.get("/v1/loads?dp_rank=1")).json()["loads"]
        assert one["dp_rank"] == 1
        refused(await streams.http.get("/v1/loads?dp_rank=2"), 400, param="dp_rank")


def test_a_sign_of_life_leaves_no_trace(tiny_graph: ServeGraph) -> None:
    generate(tiny_graph, input_ids=new_prompt(), rank=0)
    tiny_graph.wait_until_followed()
    blocks = [tiny_graph.router_rank(rank)["num_blocks"] for rank in (0, 1)]  # type: ignore[index]
    stats = [router["decisions"] for router in tiny_graph.get("/router/stats")]
    prefilled = [tiny_graph.load(rank)["total_prefill_uncached_tokens"] for rank in (0, 1)]
    for _ in range(3):
        report = tiny_graph.get("/health_generate")
        assert report["rank"] in (0, 1)
    assert [tiny_graph.router_rank(rank)["num_blocks"] for rank in (0, 1)] == blocks  # type: ignore[index]
    assert [router["decisions"] for router in tiny_graph.get("/router/stats")] == stats
    assert [tiny_graph.load(rank)["total_prefill_uncached_tokens"] for rank in (0, 1)] == prefilled
    tiny_graph.audit()


async def test_a_sign_of_life_of_a_graph_without_a_free_place(tiny_graph: ServeGraph) -> None:
    async with Streams(tiny_graph) as streams:
        for rank in (0, 1):
            await streams.open(3, rank=rank)
        response = await streams.http.get("/health_generate")
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_flushed_cache_is_forgotten_by_rank_and_router(tiny_graph: ServeGraph, method: str) -> None:
    prompts = [new_prompt(), new_prompt()]
    for rank, prompt in enumerate(prompts):
        tiny_graph.complete(prompt, rank=rank)
    tiny_graph.wait_until_followed()
    for rank, prompt in enumerate(prompts):
        assert cached_tokens(tiny_graph.complete(prompt, rank=rank)) == 96
    response = tiny_graph.http.request(method, "/flush_cache")
    flushed = [{"rank": rank, "flushed": True, "reason": None} for rank in (0, 1)]
    assert (response.status_code, response.json()) == (200, {"success": True, "ranks": flushed})

    def is_forgotten() -> bool:
        return [each["num_blocks"] for each in tiny_graph.get("/router/ranks")] == [0, 0]

    wait_until(is_forgotten, "no blocks in the index")
    assert all(rank["num_rank_blocks"] == 0 for rank in tiny_graph.audit())
    for rank, prompt in enumerate(prompts):
        assert cached_tokens(tiny_graph.complete(prompt, rank=rank)) == 0
        assert cached_tokens(tiny_graph.complete(prompt, rank=rank)) == 96
    tiny_graph.wait_until_followed()
    tiny_graph.audit()


async def test_a_flush_amid_a_stream_breaks_nothing(tiny_graph: ServeGraph) -> None:
    async with Streams(tiny_graph) as streams:
        (stream,) = await streams.open(1, rank=0, max_tokens=300)
        response = await streams.http.post("/flush_cache?timeout=1")
        assert response.json()["success"], response.text
        await stream.reading
        assert stream.ended == "[DONE]"
    tiny_graph.wait_until_followed()
    tiny_graph.audit()


def test_a_flush_needs_the_configs_leave(smollm2_graph: ServeGraph) -> None:
    response = smollm2_graph.http.post("/flush_cache")
    assert "ingress.allow_flush_cache" in refused(response, 403, code="not_allowed")


def test_a_flush_waits_no_longer_than_allowed(tiny_graph: ServeGraph) -> None:
    refused(tiny_graph.http.post("/flush_cache?timeout=3600"), 400, param="timeout")
