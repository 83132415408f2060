"""Redeploys, drains and shutdown while answers are streamed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import pytest

from tests.support.deadlines import until
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import tiny_args
from tests.support.graph.serve_graph import ServeGraph
from tests.support.graph.streams import Streams
from tests.support.graph.traffic import Traffic

REDEPLOY_S = 120


@pytest.fixture
def draining_graph(graphs: Graphs, tiny_model: str) -> Iterator[ServeGraph]:
    """Two ranks that hand their streams over after a second, behind HAProxy."""
    args = tiny_args(tiny_model)
    args["engine"]["scheduler"] = {"max_running_requests": 16}
    args["engine"]["drain_timeout_s"] = 1
    args["ingress"]["drain_timeout_s"] = 60
    yield graphs.get({"/": args}, behind_haproxy=True)
    graphs.stop()


async def test_nothing_fails_when_everything_is_redeployed(draining_graph: ServeGraph) -> None:
    graph = draining_graph
    before = graph.replicas()
    async with Traffic(graph, num_streams=3) as traffic:
        await until(lambda: traffic.num_shorts > 5, "traffic")
        graph.redeploy(routing={"initial_prefill_tokens_per_s": 1500})
        await until(lambda: is_replaced(graph, before), graph.status, REDEPLOY_S, interval_s=0.5)
    print(traffic)
    assert traffic.failures == []
    assert traffic.longest_pause_s < 10
    assert traffic.longest_wait_s < 10
    graph.wait_until_followed()
    graph.audit()


async def is_replaced(graph: ServeGraph, before: dict[str, list[str]]) -> bool:
    """Whether all replicas are others than before, and the old ones have stopped."""
    status = await asyncio.to_thread(graph.status)
    after = await asyncio.to_thread(graph.replicas)
    old = {replica for replicas in before.values() for replica in replicas}
    return status["status"] == "RUNNING" and not any(old & set(replicas) for replicas in after.values())


async def test_a_drain_lets_answers_end(draining_graph: ServeGraph) -> None:
    graph = draining_graph
    async with Streams(graph) as streams:
        answers = [stream for rank in (0, 1) for stream in await streams.open(1, rank=rank, max_tokens=800)]
        draining = asyncio.create_task(asyncio.to_thread(graph.command, sys.executable, "-m", "app.drain"))
        await until(lambda: is_refused(streams), "new requests are refused")
        assert [answer.ended for answer in answers] == [None, None], "they ended before the drain was tested"
        await draining
        assert [answer.ended for answer in answers] == ["[DONE]"] * 2


async def is_refused(streams: Streams) -> bool:
    response = await streams.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    return response.status_code == 404
