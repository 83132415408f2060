"""One kvbeacon in front of two others, whose ranks are its own by URL: all of them real graphs.

front ──▶ worker a (2 ranks, in the front's cluster, at /a)
  └─────▶ worker b (1 rank, a cluster of its own, which a test ends and starts again)
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.deadlines import wait_until
from tests.support.graph.exchanges import cached_tokens, new_prompt
from tests.support.graph.serve_config import Json, kv_events, merged, serve_config, tiny_args
from tests.support.graph.serve_graph import ServeGraph

pytestmark = pytest.mark.slow

FRONT: Json = {
    "dp_size": 3,
    "engine": {"cache": {"num_blocks": None}, "scheduler": {"max_batch_tokens": 512}},
    "resources": {"num_cpus": 0.1},
}
"""What the repository's own settings say of an engine, taken back."""


class Fleet:
    """The front and both workers."""

    def __init__(self, model: str) -> None:
        self._model = {"model": {"path": model, "served_name": "tiny"}}
        self._args = merged(tiny_args(model), {"ingress": {"allow_flush_cache": True}})
        # Its ports have room for the two ranks with which it comes back.
        ports = {"kv_events_config": json.dumps(kv_events(2))}
        self._config_of_b = serve_config({"/": self._args | ports | {"dp_size": 1}})
        self.b = ServeGraph(self._config_of_b)
        config = serve_config({"/": merged(FRONT, self._model), "/a": self._args})
        front = f"http://127.0.0.1:{config['http_options']['port']}"
        workers = [{"url": f"{front}/a", "dp_size": 2}, {"url": self.b.url}]
        config["applications"][0]["args"]["remote_ranks"] = {"workers": workers}
        self.front = ServeGraph(config)

    def start(self) -> None:
        """Return once all three serve, and the front knows all of every cache."""
        for graph in (self.b, self.front):
            graph.start()
        for graph in (self.b, self.front):
            graph.wait_until_ready()
        self.wait_until_known()

    def stop(self) -> None:
        """End both clusters."""
        for graph in (self.front, self.b):
            graph.stop()

    def restart_b(self, dp_size: int) -> None:
        """A successor of worker b, at the same URL, with so many ranks."""
        (application,) = self._config_of_b["applications"]
        args = application["args"] | {"dp_size": dp_size}
        self.b = ServeGraph(self._config_of_b | {"applications": [application | {"args": args}]})
        self.b.start()
        self.b.wait_until_ready()

    def wait_until_known(self) -> None:
        """Wait until all ranks are available and exact."""
        wait_until(self._is_known, lambda: f"all ranks known: {self.front.get('/router/ranks')}", 60)

    def _is_known(self) -> bool:
        ranks = self.front.get("/router/ranks")
        return [each["trust"] for each in ranks if each["unavailable"] is None] == ["exact"] * 3


@pytest.fixture(scope="module")
def fleet(tiny_model: str) -> Iterator[Fleet]:
    fleet = Fleet(tiny_model)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.stop()


def chat(fleet: Fleet, messages: list[Json]) -> httpx.Response:
    body = {"messages": messages, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    response = fleet.front.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    fleet.front.wait_until_followed()
    return response


def test_second_turns_land_where_the_first_one_is_cached(fleet: Fleet) -> None:
    visited: list[set[str]] = []
    conversations: list[list[Json]] = []
    for _ in range(6):
        system = {"role": "system", "content": f"{random.getrandbits(256)} is your number."}
        conversations.append([system, {"role": "user", "content": f"{random.getrandbits(256)}: tell me."}])
        visited.append(set())
    for turn in range(2):
        for messages, ranks in zip(conversations, visited, strict=True):
            response = chat(fleet, messages)
            ranks.add(response.headers["x-dp-rank"])
            assert (cached_tokens(response) > 32) == (turn > 0)
            answer = {"role": "assistant", "content": response.json()["choices"][0]["message"]["content"]}
            messages += [answer, {"role": "user", "content": "Go on, please."}]
    assert all(len(ranks) == 1 for ranks in visited), visited
    assert set.union(*visited) == {"0", "1", "2"}, "not every worker's rank was chosen"


def test_the_front_holds_what_the_workers_hold(fleet: Fleet) -> None:
    for rank in range(3):
        fleet.front.complete(new_prompt(), rank=rank)
    fleet.front.wait_until_followed()
    audited = fleet.front.audit()
    assert len(audited) == 3
    of_front = fleet.front.snapshots()
    of_b = fleet.b.snapshots()[0]
    assert set(of_front[2]["block_hashes"]) == set(of_b["block_hashes"])
    info = fleet.front.get("/server_info")["internal_states"]
    assert {each["device"] for each in info} == {"remote"}
    assert all(each["kernels"].startswith("kvbeacon") for each in info)


def test_the_ranks_processes_have_no_torch(fleet: Fleet) -> None:
    def has_torch(pid: int) -> bool:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

    def of(path: str) -> list[bool]:
        states = fleet.front.get(f"{path}/server_info")["internal_states"]
        return [has_torch(each["pid"]) for each in states]

    assert (of(""), of("/a")) == ([False] * 3, [True] * 2)


def test_a_streams_tokens_and_logprobs_are_the_workers(fleet: Fleet) -> None:
    prompt = new_prompt()
    fields = {"max_tokens": 8, "logprobs": 2, "ignore_eos": True}
    ours = fleet.front.complete(prompt, rank=2, **fields).json()["choices"]
    theirs = fleet.b.complete(prompt, **fields).json()["choices"]
    assert ours == theirs


def test_emptying_a_workers_cache_is_seen(fleet: Fleet) -> None:
    fleet.front.complete(new_prompt(), rank=2)
    fleet.front.wait_until_followed()
    assert fleet.b.http.post("/flush_cache").status_code == 200
    wait_until(lambda: not fleet.front.snapshots()[2]["block_hashes"], "the front's rank 2 holds nothing", 30)


def test_a_worker_that_goes_and_comes_back(fleet: Fleet) -> None:
    prompts = [new_prompt() for _ in range(6)]
    with ThreadPoolExecutor(len(prompts) + 1) as clients:
        fleet.front.complete(prompts[0], rank=2)
        stopping = clients.submit(fleet.b.stop)
        # None of them may end in an error, whenever the worker goes: they have no token before their end.
        while not stopping.done():
            answers = list(clients.map(lambda prompt: fleet.front.complete(prompt, max_tokens=1), prompts))
        stopping.result()
    assert {answer.headers["x-dp-rank"] for answer in answers} <= {"0", "1"}
    wait_until(lambda: unavailable(fleet) is not None, "rank 2 is unavailable")
    assert fleet.front.get("/health") is not None
    fleet.restart_b(dp_size=2)
    expected = "it has 2 DP ranks; remote_ranks.workers says dp_size = 1"
    wait_until(lambda: expected in (unavailable(fleet) or ""), lambda: unavailable(fleet), 30)
    fleet.b.stop()
    fleet.restart_b(dp_size=1)
    fleet.wait_until_known()
    fleet.front.complete(prompts[0], rank=2)


def unavailable(fleet: Fleet) -> str | None:
    ranks: list[Json] = fleet.front.get("/router/ranks")
    reason: str | None = next(each["unavailable"] for each in ranks if each["rank"] == 2)
    return reason
