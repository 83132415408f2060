"""Numbers of ranks while Ray replaces, adds and removes replicas: each one's own, in the end 0 to n - 1."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from benchmarks.graphs.replicas import controller_pid
from tests.support.deadlines import wait_until
from tests.support.graph.serve_config import Json, kv_events, serve_config, tiny_args
from tests.support.graph.serve_graph import ServeGraph

SETTLED_S = 120
"""Seconds for a change: replicas start one after another, mostly imports."""
LARGEST = 4


@pytest.fixture(scope="module")
def graph(tiny_model: str) -> Iterator[ServeGraph]:
    """Two ranks at first, with ports for four."""
    args = {**tiny_args(tiny_model), "resources": {"num_cpus": 0.1}}
    args["kv_events_config"] = json.dumps(kv_events(LARGEST))
    graph = ServeGraph(serve_config({"/": {**args, "dp_size": 2}}))
    graph.start()
    graph.wait_until_ready()
    yield graph
    graph.stop()


def replicas_of(info: Json) -> dict[int, str]:
    """The replica of each number; a number that two claim fails."""
    states = [each for each in info["internal_states"] if each["state"] != "unreachable"]
    replicas = {each["dp_rank"]: each["replica_id"] for each in states}
    assert len(replicas) == len(states), states
    return replicas


def wait_until_settled(graph: ServeGraph, dp_size: int, gone: set[str]) -> None:
    """Wait for `dp_size` ranks, none of them in `gone`, each at its number's ports and followed."""

    def has_settled() -> bool:
        response = graph.http.get("/server_info")
        if response.status_code != 200:
            return False
        replicas = replicas_of(response.json())
        return list(replicas) == list(range(dp_size)) and not gone & set(replicas.values())

    wait_until(has_settled, lambda: f"{dp_size} ranks: {graph.output()[-3000:]}", SETTLED_S, interval_s=0.2)
    info = graph.get("/server_info")
    described: Json = info["kv_events"]
    for publisher in info["publishers"][:dp_size]:
        rank = publisher["rank"]
        assert publisher["event_port"] == described["endpoint_port_base"] + rank
        assert publisher["replay_port"] == described["replay_endpoint_port_base"] + rank
        assert publisher["load_port"] == described["load_endpoint_port_base"] + rank
    assert {each["ray_rank"] for each in info["internal_states"][:dp_size]} == set(range(dp_size))
    graph.wait_until_followed(dp_size)


def test_a_rank_that_dies_while_ray_does_not_look_is_replaced_under_its_number(graph: ServeGraph) -> None:
    """Ray's controller forgets the number of a replica that dies while it is down, and gives the next one."""
    graph.complete("hello", rank=1)
    before = graph.get("/server_info")["internal_states"]
    os.kill(controller_pid(graph.pid), signal.SIGKILL)
    os.kill(before[0]["pid"], signal.SIGKILL)
    wait_until_settled(graph, 2, {before[0]["replica_id"]})
    assert len(graph.audit()) == 2
    assert graph.get("/server_info")["internal_states"][1]["replica_id"] == before[1]["replica_id"]


@pytest.mark.slow
def test_growth_and_shrinkage_while_the_others_stay(graph: ServeGraph) -> None:
    """Ray makes numbers contiguous again by renumbering replicas that run, whose caches stay.

    With another number under `deployments:`, which ranks take up to `dp_size`: other `args` restart them all.
    """
    gone = set(replicas_of(graph.get("/server_info")).values())
    graph.redeploy({"dp_size": LARGEST})
    wait_until_settled(graph, LARGEST, gone)
    (application,) = graph.config["applications"]
    for num_replicas in (3, 4, 2):
        overrides = [{"name": "DPRank", "num_replicas": num_replicas}]
        before = set(replicas_of(graph.get("/server_info")).values())
        graph.apply({**graph.config, "applications": [{**application, "deployments": overrides}]})
        wait_until_settled(graph, num_replicas, set())
        after = set(replicas_of(graph.get("/server_info")).values())
        assert before <= after or after <= before


@pytest.mark.slow
def test_growth_and_shrinkage_by_redeploy(graph: ServeGraph) -> None:
    for dp_size in (3, 1, 4):
        gone = set(replicas_of(graph.get("/server_info")).values())
        graph.redeploy({"dp_size": dp_size})
        wait_until_settled(graph, dp_size, gone)
        info = graph.get("/server_info")
        assert (info["dp_size"], info["kv_events"]["dp_size"]) == (dp_size, dp_size)
        assert len(info["publishers"]) == len(graph.audit()) == dp_size
        graph.complete("hello")
