"""Two kvbeacons and a vLLM server behind one graph, as a user would have them: real model, real processes.

front ──▶ worker a: kvbeacon, blocks of 32 ─┐ one cluster
  ├─────▶ worker b: kvbeacon, blocks of 16 ─┘
  └─────▶ worker c: vLLM's own server, which is killed and comes back
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.deadlines import wait_until
from tests.support.engine.vllm_server import BLOCK_SIZE, VllmServer
from tests.support.graph.exchanges import cached_tokens, new_prompt
from tests.support.graph.serve_config import Json, serve_config
from tests.support.graph.serve_graph import ServeGraph

FRONT: Json = {
    "dp_size": 3,
    "model": {"served_name": "smollm2"},
    "engine": {
        "cache": {"num_blocks": None, "block_size": BLOCK_SIZE},
        "scheduler": {"max_batch_tokens": 512},
    },
    "resources": {"num_cpus": 0.1},
}
"""What the repository's own settings say of an engine, taken back."""


@pytest.fixture(scope="module")
def vllm(smollm2_dir: Path) -> Iterator[VllmServer]:
    server = VllmServer(smollm2_dir, "--enable-scale-out", "--served-model-name", "smollm2")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def front(vllm: VllmServer) -> Iterator[ServeGraph]:
    def worker(block_size: int) -> Json:
        cache = {"block_size": block_size, "num_blocks": 8192 // block_size}
        return {"dp_size": 1, "model": {"dtype": "float32"}, "engine": {"cache": cache}}

    config = serve_config({"/": FRONT, "/a": worker(BLOCK_SIZE), "/b": worker(16)})
    here = f"http://127.0.0.1:{config['http_options']['port']}"
    urls = (f"{here}/a", f"{here}/b", vllm.url)
    config["applications"][0]["args"]["remote_ranks"] = {"workers": [{"url": url} for url in urls]}
    graph = ServeGraph(config)
    graph.start()
    try:
        vllm.wait_until_ready()
        graph.wait_until_ready()
        wait_until_known(graph)
        yield graph
    finally:
        graph.stop()


def ranks_of(front: ServeGraph) -> list[Json]:
    ranks: list[Json] = front.get("/router/ranks")
    return sorted(ranks, key=lambda each: int(each["rank"]))


def wait_until_known(front: ServeGraph) -> None:
    def is_known() -> bool:
        ranks = ranks_of(front)
        return [(each["unavailable"], each["trust"]) for each in ranks] == [(None, "exact")] * 3

    wait_until(is_known, lambda: f"all ranks known: {ranks_of(front)}", 120)


def has_more(front: ServeGraph, rank: int, num_blocks: int) -> bool:
    """Whether the router knows more than so many blocks of the rank."""
    return int(ranks_of(front)[rank]["num_blocks"]) > num_blocks


def chat(front: ServeGraph, messages: list[Json]) -> httpx.Response:
    body = {"messages": messages, "max_tokens": 12, "temperature": 0}
    response = front.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    front.wait_until_followed()
    return response


def test_second_turns_land_on_the_worker_that_has_the_first(front: ServeGraph) -> None:
    visited: list[set[str]] = []
    conversations: list[list[Json]] = []
    for _ in range(6):
        system = {"role": "system", "content": f"{random.getrandbits(256)} is your number."}
        conversations.append([system, {"role": "user", "content": f"{random.getrandbits(256)}: tell me."}])
        visited.append(set())
    for turn in range(2):
        for messages, ranks in zip(conversations, visited, strict=True):
            known = [each["num_blocks"] for each in ranks_of(front)]
            response = chat(front, messages)
            rank = int(response.headers["x-dp-rank"])
            ranks.add(str(rank))
            if turn == 0:  # vLLM publishes after it has answered
                wait_until(partial(has_more, front, rank, known[rank]), lambda: ranks_of(front))
            assert (cached_tokens(response) >= 2 * BLOCK_SIZE) == (turn > 0)
            answer = {"role": "assistant", "content": response.json()["choices"][0]["message"]["content"]}
            messages += [answer, {"role": "user", "content": "Go on, please."}]
    assert all(len(ranks) == 1 for ranks in visited), visited
    assert set.union(*visited) == {"0", "1", "2"}, "not every worker was chosen"


def test_every_index_is_what_the_relays_hold(front: ServeGraph) -> None:
    for rank in range(3):
        front.complete(new_prompt(), rank=rank)
    front.wait_until_followed()
    assert len(front.audit()) == 3
    kernels = [each["kernels"].split()[0] for each in front.get("/server_info")["internal_states"]]
    assert kernels == ["kvbeacon", "kvbeacon", "vllm"]


def test_all_workers_give_the_same_greedy_answer(front: ServeGraph) -> None:
    prompt = "The capital of France is"
    texts = {
        front.complete(prompt, rank=rank, max_tokens=6).json()["choices"][0]["text"] for rank in range(3)
    }
    assert len(texts) == 1, texts
    assert "Paris" in texts.pop()


def test_a_killed_servers_requests_go_elsewhere_and_it_is_found_again(
    front: ServeGraph, vllm: VllmServer
) -> None:
    front.complete(new_prompt(), rank=2)
    prompts = [new_prompt(400) for _ in range(9)]
    with ThreadPoolExecutor(len(prompts)) as clients:
        # Killed while they are computed: none has a token before its only one, so none may fail.
        answers = clients.map(lambda prompt: front.complete(prompt, max_tokens=1), prompts)
        vllm.kill()
        assert len(list(answers)) == 9
    wait_until(lambda: ranks_of(front)[2]["unavailable"], lambda: ranks_of(front))
    answers_after = [front.complete(prompt, max_tokens=1) for prompt in prompts]
    assert {answer.headers["x-dp-rank"] for answer in answers_after} <= {"0", "1"}
    vllm.start()
    vllm.wait_until_ready()
    wait_until_known(front)
    assert ranks_of(front)[2]["num_blocks"] == 0
    prompt = new_prompt()
    front.complete(prompt, rank=2)
    # vLLM publishes after it has answered.
    wait_until(lambda: ranks_of(front)[2]["num_blocks"] == 3, lambda: ranks_of(front))
    assert cached_tokens(front.complete(prompt, rank=2)) == 96
    front.audit()
