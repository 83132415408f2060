"""Two routers and two ingresses: every router knows every rank, and what the other has just sent there."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest

from tests.integration.conftest import Graphs, tiny_args
from tests.integration.serve_graph import ServeGraph, wait_for
from tests.integration.streams import until

LONG_TOKENS = 3000
"""One step of some tenths of a second, in which a rank can report nothing."""
MORE_TOKENS = 100
"""That rank 1 has to compute: whoever doesn't know of a short request on rank 0 goes there."""
SHORT_TOKENS = 200
APART_S = 0.04
"""Between the two requests of a pair: far less than that step."""
PAIRS = 8


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str) -> ServeGraph:
    args = tiny_args(tiny_model)
    args["engine"]["cache"]["num_blocks"] = 1024
    args["engine"]["scheduler"] |= {"max_running_requests": 8, "max_batch_tokens": 2 * LONG_TOKENS}
    args["routing"]["num_routers"] = 2
    args["ingress"]["num_ingresses"] = 2
    graph = graphs.get({"/": args})
    # The graph serves as soon as one of its routers knows the ranks.
    wait_for(lambda: graph.http.get("/router/audit").json().get("equal"), "both routers know both ranks")
    return graph


async def test_routers_do_not_herd_onto_a_rank_that_has_not_reported_yet(graph: ServeGraph) -> None:
    async with httpx.AsyncClient(base_url=graph.url, timeout=60) as http:
        pairs = [await choose_pair(http) for _ in range(PAIRS)]
    by_two_routers = [ranks for ranks, routers in pairs if len(set(routers)) == 2]
    print(f"\n{PAIRS} pairs, {len(by_two_routers)} of them chosen by two routers: {pairs}")
    assert by_two_routers
    assert all(ranks == [0, 1] for ranks, _ in pairs), pairs
    heard = [router["heard_from_routers"]["reservations"] for router in graph.get("/router/stats")]
    assert len(heard) == 2
    assert min(heard) > 0


def test_every_router_knows_every_block_of_every_rank(graph: ServeGraph) -> None:
    prompts = [random.choices(range(1000, 40_000), k=330) for _ in range(4)]
    for number, prompt in enumerate(prompts):
        graph.complete(prompt, rank=number % 2)
    graph.wait_until_followed()
    report = graph.get("/router/audit")
    assert report["equal"], report
    held = [[rank["num_rank_blocks"] for rank in router["ranks"]] for router in report["routers"]]
    assert len(held) == 2
    assert held[0] == held[1]
    assert min(held[0]) >= 2 * (330 // 16)


async def choose_pair(http: httpx.AsyncClient) -> tuple[list[int], list[str]]:
    """The ranks of two requests that come while both ranks are amid a step, and the routers that chose."""
    busy = [asyncio.create_task(complete(http, LONG_TOKENS + rank * MORE_TOKENS, rank)) for rank in (0, 1)]
    await until(lambda: are_busy(http), "both ranks at work")
    pair = []
    for _ in range(2):
        pair.append(asyncio.create_task(complete(http, SHORT_TOKENS)))
        await asyncio.sleep(APART_S)
    answers = await asyncio.gather(*pair)
    await asyncio.gather(*busy)
    receipts = [(await http.get(f"/router/decisions/{each.json()['id']}")).json() for each in answers]
    routers = [receipt["attempts"][-1]["router"] for receipt in receipts]
    return [int(answer.headers["x-dp-rank"]) for answer in answers], routers


async def complete(http: httpx.AsyncClient, num_tokens: int, rank: int | None = None) -> httpx.Response:
    body = {"prompt": random.choices(range(1000, 40_000), k=num_tokens), "max_tokens": 1}
    headers = {} if rank is None else {"X-Data-Parallel-Rank": str(rank)}
    response = await http.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response


async def are_busy(http: httpx.AsyncClient) -> bool:
    known = (await http.get("/router/ranks")).json()
    return [each["waiting_tokens"] >= LONG_TOKENS for each in known] == [True, True]
