"""The whole graph with two ranks of vLLM: outside the replicas nothing differs from ours.

Its events are encrypted, so every test here is one of CURVE too.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from app import hashing
from app.events.curve import load_rank_keys
from app.events.descriptor import read_descriptor
from tests.support.deadlines import wait_until
from tests.support.engine.vllm_processes import engine_cores, is_alive
from tests.support.events.curve_keys import Keys
from tests.support.graph.exchanges import cached_tokens, new_prompt, refused
from tests.support.graph.serve_config import kv_events, serve_config
from tests.support.graph.serve_graph import ServeGraph

BLOCK_SIZE = 32
NUM_BLOCKS = 48
RETURN_S = 240
"""Seconds within which a killed rank is back: vLLM starts in half a minute where it has a core of its own."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def graph(keys: Keys) -> Iterator[ServeGraph]:
    args = {
        "engine": {
            "backend": "vllm",
            "vllm": {"enforce_eager": True},
            "cache": {"block_size": BLOCK_SIZE, "num_blocks": NUM_BLOCKS},
            "scheduler": {"max_running_requests": 4, "max_waiting_requests": 16},
        },
        "kv_events_config": json.dumps(kv_events(2) | {"token_ids": False, "curve": keys.config}),
        "ingress": {"tenant_header": "X-Tenant"},
    }
    graph = ServeGraph(serve_config({"/": args}))
    graph.http.headers["X-Tenant"] = "one"
    graph.start()
    try:
        graph.wait_until_ready()
        yield graph
    finally:
        graph.stop()


@pytest.mark.short
def test_a_conversation_stays_where_its_blocks_are(graph: ServeGraph) -> None:
    messages = [{"role": "user", "content": "Tell me of the sea, " * 30}]
    first = chat(graph, messages)
    messages += [first.json()["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    second = chat(graph, messages)
    assert second.headers["x-dp-rank"] == first.headers["x-dp-rank"]
    assert cached_tokens(second) >= cached_tokens(first) + 96
    graph.wait_until_followed()
    graph.audit()


@pytest.mark.short
def test_after_evictions_every_index_is_equal_to_its_cache(graph: ServeGraph) -> None:
    prompts = [new_prompt(300) for _ in range(12)]
    for number, prompt in enumerate(prompts):
        graph.complete(prompt, rank=number % 2)
    graph.wait_until_followed()
    ranks = graph.audit()
    assert len(ranks) == 2
    held = [state["num_cached_blocks"] for state in graph.get("/server_info")["internal_states"]]
    assert all(0 < each <= NUM_BLOCKS for each in held), held
    assert cached_tokens(graph.complete(prompts[-1])) == 288


def test_a_tenants_blocks_are_its_own(graph: ServeGraph) -> None:
    prompt = new_prompt(100)
    graph.complete(prompt, rank=0)
    assert cached_tokens(graph.complete(prompt)) == 96
    other = graph.http.post(
        "/v1/completions", json={"prompt": prompt, "max_tokens": 1}, headers={"X-Tenant": "two"}
    )
    assert cached_tokens(other) == 0
    graph.wait_until_followed()
    wanted = hashing.wire_hashes(
        hashing.chain(prompt, BLOCK_SIZE, hashing.seed(hashing.tenant_salt("one", None)))
    )
    assert set(wanted) <= set(graph.snapshots()[0]["block_hashes"])


def test_errors_name_what_vllm_cant_honour(graph: ServeGraph) -> None:
    body = {"prompt": new_prompt(10), "temperature": 2.0, "max_tokens": 1, "min_p": 0.1}
    assert graph.http.post("/v1/completions", json=body).status_code == 200
    odd = graph.http.post("/v1/completions", json=body | {"temperature": 0.001})
    assert "0.01" in refused(odd, 400, param="temperature")


def test_what_changes_vllms_events_is_no_field_of_a_request(graph: ServeGraph) -> None:
    """`kv_cache_report_mode: full` would publish blocks again that are there already."""
    mode = {"kv_cache_report_mode": "full"}
    body = {"prompt": new_prompt(10), "max_tokens": 1}
    refused(graph.http.post("/v1/completions", json=body | {"vllm_xargs": mode}), 400, param="vllm_xargs")
    for fields in ({"extra_args": mode}, mode):
        answer = graph.http.post("/v1/completions", json=body | fields)
        assert answer.headers["x-kvbeacon-ignored-fields"] in fields


def test_a_client_that_leaves_frees_the_rank(graph: ServeGraph) -> None:
    body = {"prompt": new_prompt(100), "max_tokens": 1000, "stream": True, "ignore_eos": True}
    headers = {"X-Data-Parallel-Rank": "1"}
    with graph.http.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        assert response.status_code == 200, response.read()
        lines = response.iter_lines()  # which closes the connection when it is collected
        next(lines)
        wait_until(lambda: graph.load(1)["num_running_reqs"] == 1, lambda: f"it runs: {graph.load(1)}")
    wait_until(lambda: graph.load(1)["num_running_reqs"] == 0, "the rank idle")


def test_the_descriptor_is_ours(graph: ServeGraph, keys: Keys) -> None:
    info = graph.get("/server_info")
    assert info["kv_events"]["curve_public_key"] == load_rank_keys(keys.curve_config()).public.decode()
    assert len(read_descriptor(info["kv_events"], "127.0.0.1")) == 2
    assert info["kv_events"]["block_size"] == BLOCK_SIZE


@pytest.mark.short
def test_a_killed_engine_core_takes_its_replica_and_a_killed_replica_its_engine_core(
    graph: ServeGraph,
) -> None:
    """Last: afterwards both ranks are new ones."""
    prompt = new_prompt(100)
    graph.complete(prompt, rank=1)
    graph.wait_until_followed()
    wait_until(
        lambda: list(map(len, cores_of_ranks(graph).values())) == [1, 1],
        lambda: f"an engine core for each rank: {cores_of_ranks(graph)}",
    )
    cores = cores_of_ranks(graph)
    pids = list(cores)
    ((orphan,), (core,)) = cores.values()
    os.kill(core, signal.SIGKILL)
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: not is_alive(orphan), "the killed replica's engine core gone")
    wait_until(lambda: are_new(graph, pids), lambda: f"both ranks back: {graph.output()[-20000:]}", RETURN_S)
    assert cached_tokens(graph.complete(prompt, rank=1)) == 0
    graph.wait_until_followed()
    graph.audit()


def chat(graph: ServeGraph, messages: list[dict[str, str]]) -> httpx.Response:
    response = graph.http.post(
        "/v1/chat/completions", json={"messages": messages, "max_tokens": 40, "temperature": 0}
    )
    assert response.status_code == 200, response.text
    return response


def cores_of_ranks(graph: ServeGraph) -> dict[int, list[int]]:
    """Each rank's process, in the order of their numbers, and its engine cores."""
    states = graph.get("/server_info")["internal_states"]
    return {state["pid"]: engine_cores(state["pid"]) for state in states}


def are_new(graph: ServeGraph, old: list[int]) -> bool:
    if not graph.is_ready:
        return False
    states = graph.get("/server_info")["internal_states"]
    return len(states) == 2 and not {state.get("pid") for state in states} & {*old, None}
