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


@pytest.fixture
def draining_graph(graphs: Graphs, tiny_model: str) -> Iterator[ServeGraph]:
    """Two ranks that hand their streams over after a second, behind HAProxy."""
    args = tiny_args(tiny_model)
    args["engine"]["scheduler"]["max_waiting_requests"] = 10_000
    args["engine"]["drain_timeout_s"] = 1
    args["ingress"]["drain_timeout_s"] = 60
    yield graphs.get({"/": args}, behind_haproxy=True)
    graphs.stop()


async def test_a_drain_lets_answers_end(draining_graph: ServeGraph) -> None:
    graph = draining_graph
    async with Streams(graph) as streams:
        answers = [
            *await streams.open(1, rank=0, max_tokens=800),
            *await streams.open(1, rank=1, max_tokens=800),
        ]
        draining = asyncio.create_task(asyncio.to_thread(graph.command, sys.executable, "-m", "app.drain"))
        await until(lambda: is_refused(streams), "new requests are refused")
        assert [answer.ended for answer in answers] == [None, None], "they ended before the drain was tested"
        printed = await draining
        assert [answer.ended for answer in answers] == ["[DONE]"] * 2
        print(printed, [a.longest_pause_s for a in answers])
        assert "Ingress 1" in printed


async def is_refused(streams: Streams) -> bool:
    response = await streams.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    print(response.status_code, response.headers, response.text)
    return response.status_code == 404
