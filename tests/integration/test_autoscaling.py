"""Ranks that come with the load and go without it, from none at all, with no request failing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.deadlines import until, wait_until
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import Json, merged, tiny_args
from tests.support.graph.serve_graph import ServeGraph
from tests.support.graph.streams import Streams

START_S = 60.0
"""Within which a rank comes: mostly imports, on two busy cores."""
STOP_S = 30.0


@pytest.fixture
def autoscaling_graph(graphs: Graphs, tiny_model: str) -> Iterator[ServeGraph]:
    """None to two ranks of a tiny model, three requests in a batch, quick to come and go."""
    autoscaling = {"min_ranks": 0, "max_ranks": 2, "upscale_delay_s": 0, "downscale_delay_s": 2}
    yield graphs.get({"/": merged(tiny_args(tiny_model), {"autoscaling": autoscaling, "dp_size": 2})})
    graphs.stop()


def numbers(graph: ServeGraph) -> list[int]:
    """The ranks that the router routes to."""
    ranks: list[Json] = graph.get("/router/ranks")
    return sorted(each["rank"] for each in ranks if each["trust"] != "syncing")


async def test_from_none_to_two_and_back(autoscaling_graph: ServeGraph) -> None:
    graph = autoscaling_graph
    health = graph.http.get("/health").text
    print(health, graph.get("/server_info")["kv_events"], graph.get("/server_info")["publishers"])

    begun = time.monotonic()
    graph.complete([1, 2, 3])
    print("from zero", time.monotonic() - begun)
    print(numbers(graph))

    begun = time.monotonic()
    async with Streams(graph) as streams:
        opened = await streams.open(3, 0)
        streams.send(6, ignore_eos=True, max_tokens=500)
        await until(lambda: numbers(graph) == [0, 1], "two ranks", START_S)
        print("two", time.monotonic() - begun)
        graph.complete([4, 5, 6], rank=1)
        graph.wait_until_followed()
        graph.audit()
        answers = [await each for each in streams.sent]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert [stream.ended for stream in opened if stream.ended != "[DONE]"] == [None] * 3
    begun = time.monotonic()
    wait_until(lambda: numbers(graph) == [], "no rank", STOP_S, interval_s=0.1)
    print("none", time.monotonic() - begun)
    print(graph.http.get("/health").text)
