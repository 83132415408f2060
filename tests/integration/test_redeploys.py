"""Redeploys, drains, and deaths meanwhile, while answers are streamed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.deadlines import until
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import tiny_args
from tests.support.graph.serve_graph import ServeGraph
from tests.support.graph.streams import Stream, Streams
from tests.support.graph.traffic import Traffic

REDEPLOY_S = 150
LONGEST_S = 15.0
"""For a pause or a wait. An interrupted request waits for its ingress' next look and a prefill, some 4 s; the
rest is for two busy cores, on which ranks load their models meanwhile."""


def redeployed_args(model: str) -> dict[str, Any]:
    """Two ranks that hand their streams over after a second."""
    args = tiny_args(model)
    args["engine"]["scheduler"] = {"max_running_requests": 16}
    args["engine"]["drain_timeout_s"] = 1
    args["ingress"]["drain_timeout_s"] = 250
    return args


@pytest.fixture
def haproxy_graph(graphs: Graphs, tiny_model: str) -> ServeGraph:
    """A graph behind HAProxy that these tests share."""
    return graphs.get({"/": redeployed_args(tiny_model)}, behind_haproxy=True)


@pytest.fixture
def last_of_haproxy_graph(graphs: Graphs, haproxy_graph: ServeGraph) -> Iterator[ServeGraph]:
    """The same; it may be broken."""
    yield haproxy_graph
    graphs.stop()


@pytest.fixture
def ray_proxy_graph(graphs: Graphs, tiny_model: str) -> Iterator[ServeGraph]:
    """The same behind Ray's own proxy, with two routers and two ingresses."""
    args = redeployed_args(tiny_model)
    args["routing"]["num_routers"] = 2
    args["ingress"]["num_ingresses"] = 2
    yield graphs.get({"/": args})
    graphs.stop()


@pytest.mark.slow
async def test_nothing_fails_when_everything_is_redeployed(haproxy_graph: ServeGraph) -> None:
    await redeploy(haproxy_graph, routing={"initial_prefill_tokens_per_s": 1500})


async def test_clients_of_an_ingress_that_dies_get_our_error_from_rays_proxy(tiny_graph: ServeGraph) -> None:
    async with Streams(tiny_graph) as streams:
        stream = await kill_the_ingress(tiny_graph, streams)
        (answer,) = await asyncio.gather(*streams.sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "ingress_died")
        await stream.reading
        assert stream.ended == "ingress_died"
        await until(lambda: answers(streams), "an ingress that answers", 60)


@pytest.mark.slow
async def test_behind_haproxy_an_ingress_that_dies_breaks_its_answers_off(haproxy_graph: ServeGraph) -> None:
    async with Streams(haproxy_graph) as streams:
        stream = await kill_the_ingress(haproxy_graph, streams)
        # HAProxy closes the connection, or answers 5xx in words of its own.
        (answer,) = await asyncio.gather(*streams.sent, return_exceptions=True)
        if isinstance(answer, httpx.Response):
            assert answer.status_code >= 500
        else:
            assert isinstance(answer, httpx.RemoteProtocolError)
        with pytest.raises(httpx.RemoteProtocolError):
            await stream.reading
        await until(lambda: answers(streams), "an ingress that answers", 60)


async def kill_the_ingress(graph: ServeGraph, streams: Streams) -> Stream:
    """While a stream, which is returned, and an answer in one piece are on their way."""
    (stream,) = await streams.open(1, max_tokens=2000)
    streams.send(max_tokens=2000)
    await until(lambda: all_running(streams), "both requests run")
    for pid in graph.pids("Ingress"):
        os.kill(pid, signal.SIGKILL)
    return stream


@pytest.mark.slow
async def test_a_drain_lets_answers_end(last_of_haproxy_graph: ServeGraph) -> None:
    graph = last_of_haproxy_graph
    async with Streams(graph) as streams:
        streams.send(max_tokens=1000)
        draining = asyncio.create_task(asyncio.to_thread(graph.command, sys.executable, "-m", "app.drain"))
        taken = await streams.open_while_taken(max_tokens=400)
        assert taken[-1].ended is None, "it ended before the drain was tested"
        assert "no application is left" in await draining
        assert [each.ended for each in taken] == ["[DONE]"] * len(taken)
        (answer,) = await asyncio.gather(*streams.sent)
        assert answer.json()["usage"]["completion_tokens"] == 1000
    assert graph.replicas() == {}


@pytest.mark.slow
async def test_rounds_of_redeploys_with_a_kill_growth_shrinkage_and_another_model(
    ray_proxy_graph: ServeGraph, tiny_model: str, tmp_path: Path
) -> None:
    graph = ray_proxy_graph
    await redeploy(graph, routing={"initial_prefill_tokens_per_s": 1100})
    await redeploy(graph, kill_a_rank=True, routing={"initial_prefill_tokens_per_s": 1200})
    await redeploy(graph, dp_size=3)
    await redeploy(graph, dp_size=2, engine={"drain_timeout_s": 0})
    await redeploy(graph, routing={"initial_prefill_tokens_per_s": 1300})
    other_model = shutil.copytree(tiny_model, tmp_path / "other")
    await redeploy(graph, model={"path": str(other_model)})


async def redeploy(graph: ServeGraph, *, kill_a_rank: bool = False, **changes: Any) -> None:
    """Redeploy under traffic, none of which fails."""
    before = graph.replicas()
    async with Traffic(graph, num_streams=3) as traffic:
        await until(lambda: traffic.num_shorts > 5, "traffic")
        graph.redeploy(changes)
        if kill_a_rank:
            await until(lambda: len(graph.pids("DPRank")) > 2, "a new rank beside the old ones", REDEPLOY_S)
            os.kill(graph.pids("DPRank")[-1], signal.SIGKILL)
        await until(lambda: is_replaced(graph, before), lambda: states(graph), REDEPLOY_S, interval_s=0.5)
    print(f"redeployed with {changes}: {traffic}")
    assert traffic.failures == []
    assert traffic.longest_pause_s < LONGEST_S
    assert traffic.longest_wait_s < LONGEST_S
    graph.wait_until_followed()
    assert graph.get("/server_info")["dp_size"] == graph.config["applications"][0]["args"]["dp_size"]


async def is_replaced(graph: ServeGraph, before: dict[str, list[str]]) -> bool:
    """Whether all replicas are others than before, and the old ones have stopped."""
    status = await asyncio.to_thread(graph.status)
    after = await asyncio.to_thread(graph.replicas)
    old = {replica for replicas in before.values() for replica in replicas}
    return status["status"] == "RUNNING" and not any(old & set(replicas) for replicas in after.values())


def states(graph: ServeGraph) -> dict[str, list[str]]:
    """Of every deployment's replicas, for messages."""
    deployments = graph.status()["deployments"]
    return {name: [replica["state"] for replica in each["replicas"]] for name, each in deployments.items()}


async def all_running(streams: Streams) -> bool:
    running: list[int] = [(await streams.load(rank))["num_running_reqs"] for rank in (0, 1)]
    return sum(running) == 2


async def answers(streams: Streams) -> bool:
    response = await streams.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    return response.status_code == 200
