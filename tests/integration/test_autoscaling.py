"""Ranks that come with the load and go without it, from none at all, with no request failing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from app.deployments.ingress.reports.health import ON_DEMAND
from tests.support.deadlines import until, wait_until
from tests.support.graph.exchanges import new_prompt, refused
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import Json, merged, tiny_args
from tests.support.graph.serve_graph import START_S, ServeGraph
from tests.support.graph.streams import LONG, Streams

STOP_S = 60.0
QUICK: Json = {"min_ranks": 0, "max_ranks": 2, "upscale_delay_s": 0, "downscale_delay_s": 2}
"""Ranks of `tiny_args` have three places in a batch."""
WAVE = LONG | {"max_tokens": 1500}


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str) -> Iterator[ServeGraph]:
    yield graphs.get({"/": merged(tiny_args(tiny_model), {"dp_size": 2, "autoscaling": QUICK})})
    graphs.stop()


@pytest.fixture
def larger_graph(graphs: Graphs, tiny_model: str) -> Iterator[ServeGraph]:
    """Up to three ranks, with queues that never fill."""
    changes = {
        "dp_size": 3,
        "autoscaling": QUICK | {"max_ranks": 3},
        "engine": {"scheduler": {"max_waiting_requests": 10_000}},
    }
    yield graphs.get({"/": merged(tiny_args(tiny_model), changes)})
    graphs.stop()


def numbers(graph: ServeGraph) -> list[int]:
    """The ranks whose caches the router knows."""
    ranks: list[Json] = graph.get("/router/ranks")
    return sorted(each["rank"] for each in ranks if each["trust"] != "syncing")


def is_equal(graph: ServeGraph) -> bool:
    """Whether an audit compared all ranks; none differs, also while one comes or goes."""
    report = graph.http.get("/router/audit").json()
    assert report["equal"] is not False, report
    return bool(report["complete"])


def wait_until_none_is_left(graph: ServeGraph) -> None:
    wait_until(lambda: graph.get("/router/ranks") == [], "no rank", STOP_S, interval_s=0.1)


def assert_healthy_without_a_rank(graph: ServeGraph) -> None:
    health = graph.get("/health")
    assert (health["status"], health["ranks"], health["missing"]) == (f"ok: {ON_DEMAND}", 0, [])
    assert graph.get("/health_generate") == {"rank": None, "reason": ON_DEMAND}
    info = graph.get("/server_info")
    shown = {name: info[name] for name in ("dp_size", "kv_events", "publishers", "internal_states")}
    assert shown == {"dp_size": 0, "kv_events": None, "publishers": [], "internal_states": []}
    refused(graph.http.post("/router/explain", json={"prompt": [1]}), 503, code="no_rank_available")


@pytest.mark.slow
async def test_from_no_rank_to_two_and_back(graph: ServeGraph) -> None:
    assert_healthy_without_a_rank(graph)
    graph.complete(new_prompt())
    wait_until(lambda: numbers(graph) == [0], "one rank")

    async with Streams(graph) as streams:
        opened = await streams.open(3, 0)
        streams.send(3)
        await until(lambda: numbers(graph) == [0, 1], "two ranks", START_S)
        graph.complete(new_prompt(), rank=1)
        assert graph.get("/server_info")["kv_events"]["dp_size"] == 2
        graph.wait_until_followed()
        graph.audit()
        assert [stream.ended for stream in opened] == [None] * 3
        for stream in opened:
            await stream.disconnect()
        assert [(await answer).status_code for answer in streams.sent] == [200] * 3

    wait_until_none_is_left(graph)
    assert_healthy_without_a_rank(graph)


@pytest.mark.slow
async def test_up_and_down_again_and_again_under_load(larger_graph: ServeGraph) -> None:
    """Long streams come in waves, and short requests all the time, also while there is no rank."""
    graph = larger_graph
    async with Streams(graph) as streams:
        waves: list[httpx.Response] = []
        async with streams.arriving(every_s=0.5):
            for _ in range(2):
                wave = [
                    asyncio.create_task(
                        streams.http.post("/v1/completions", json=WAVE | {"prompt": new_prompt()})
                    )
                    for _ in range(9)
                ]
                await until(lambda: numbers(graph) == [0, 1, 2], "three ranks", START_S)
                waves += await asyncio.gather(*wave)
                await until(lambda: numbers(graph) == [0], "one rank", STOP_S)
                await until(lambda: is_equal(graph), "an audit that no coming or going rank disturbs")
        answers = await asyncio.gather(*streams.sent)
        wait_until_none_is_left(graph)
        await streams.open(1, 0, max_tokens=100)
    assert [answer.status_code for answer in (*waves, *answers)] == [200] * (len(waves) + len(answers))
    tokens = [answer.json()["usage"]["completion_tokens"] for answer in waves]
    assert tokens == [WAVE["max_tokens"]] * len(waves)
