"""Numbers of ranks while Ray replaces, adds and removes replicas: each one's own, in the end 0 to n - 1."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.deadlines import wait_until
from tests.support.graph.serve_config import Json, kv_events, serve_config, tiny_args
from tests.support.graph.serve_graph import ServeGraph

SETTLED_S = 120
"""Seconds for a redeploy: replicas start one after another, mostly imports."""
LARGEST = 4


@pytest.fixture(scope="module")
def graph(tiny_model: str) -> Iterator[ServeGraph]:
    args = {**tiny_args(tiny_model), "resources": {"num_cpus": 0.1}}
    args["kv_events_config"] = json.dumps(kv_events(LARGEST))
    graph = ServeGraph(serve_config({"/": {**args, "dp_size": 2}}))
    graph.start()
    graph.wait_until_ready()
    yield graph
    graph.stop()


def assert_settled(graph: ServeGraph, dp_size: int, before: set[str]) -> set[str]:
    """Wait for `dp_size` new ranks; each has its number's ports, and the audit is equal. Their ids."""

    def has_settled() -> bool:
        try:
            info = graph.get("/server_info")
        except AssertionError:
            return False
        states = info["internal_states"]
        replicas = {each.get("replica_id") for each in states}
        numbers = [each["dp_rank"] for each in states]
        return numbers == list(range(dp_size)) and not replicas & {None, *before}

    wait_until(has_settled, f"{dp_size} new ranks", SETTLED_S, interval_s=0.2)
    info = graph.get("/server_info")
    described: Json = info["kv_events"]
    assert (info["dp_size"], described["dp_size"]) == (dp_size, dp_size)
    for publisher in info["publishers"]:
        rank = publisher["rank"]
        assert publisher["event_port"] == described["endpoint_port_base"] + rank
        assert publisher["replay_port"] == described["replay_endpoint_port_base"] + rank
        assert publisher["load_port"] == described["load_endpoint_port_base"] + rank
    graph.wait_until_followed()
    assert len(graph.audit()) == dp_size
    return {each["replica_id"] for each in info["internal_states"]}


@pytest.mark.slow
def test_growth_and_shrinkage_by_redeploy(graph: ServeGraph) -> None:
    replicas = assert_settled(graph, 2, set())
    for dp_size in (3, 1, 4):
        graph.redeploy({"dp_size": dp_size})
        replicas = assert_settled(graph, dp_size, replicas)
        answer = graph.http.post(
            "/v1/completions", json={"model": "tiny", "prompt": "hello", "max_tokens": 3}
        )
        assert answer.status_code == 200, answer.text
