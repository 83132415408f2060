"""Two routers and two ingresses: every router knows every rank, and what the other has just sent there."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import httpx
import pytest

from tests.support.deadlines import until, wait_until
from tests.support.graph.exchanges import new_prompt
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import tiny_args
from tests.support.graph.serve_graph import ServeGraph

LONG_TOKENS = 3000
"""One step of some tenths of a second, in which a rank can report nothing."""
MORE_TOKENS = 100
"""More for rank 1 than for rank 0: a router that doesn't know of a short request on rank 0 chooses rank 0."""
SHORT_TOKENS = 200
PAIRS = 3
"""Pairs that show something: see `Pair.counts`."""


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str) -> ServeGraph:
    args = tiny_args(tiny_model)
    args["engine"]["cache"]["num_blocks"] = 1024
    args["engine"]["scheduler"] |= {"max_running_requests": 8, "max_batch_tokens": 2 * LONG_TOKENS}
    args["routing"]["num_routers"] = 2
    args["ingress"]["num_ingresses"] = 2
    graph = graphs.get({"/": args})
    # The graph serves as soon as one of its routers knows the ranks.
    wait_until(lambda: audited(graph) == [True, True], "both routers know both ranks", 60)
    return graph


async def test_routers_do_not_herd_onto_a_rank_that_has_not_reported_yet(graph: ServeGraph) -> None:
    async with httpx.AsyncClient(base_url=graph.url, timeout=60) as http:
        client = Client(http, await num_peer_reservations(http))
        pairs: list[Pair] = []
        while sum(pair.counts for pair in pairs) < PAIRS:
            pairs.append(await client.choose_pair())
            assert len(pairs) < 20 * PAIRS, f"none counts: {pairs}"
    print(f"\n{len(pairs)} pairs, of which {PAIRS} count")
    assert all(pair.ranks == [0, 1] for pair in pairs if pair.counts), pairs


def test_every_router_knows_every_block_of_every_rank(graph: ServeGraph) -> None:
    prompts = [new_prompt(330) for _ in range(4)]
    for number, prompt in enumerate(prompts):
        graph.complete(prompt, rank=number % 2)
    graph.wait_until_followed()
    report = graph.get("/router/audit")
    assert report["equal"], report
    held = [[rank["num_rank_blocks"] for rank in router["ranks"]] for router in report["routers"]]
    assert len(held) == 2
    assert held[0] == held[1]
    assert min(held[0]) >= 2 * (330 // 16)


class Pair(NamedTuple):
    """Where two requests went.

    Attributes:
        ranks: of the first request and of the second.
        by_two_routers: whether different routers sent them there.
        both_busy: whether both choices were made while neither rank had finished its long request. A rank may
            have, where the machine lets the other one wait.
    """

    ranks: list[int]
    by_two_routers: bool
    both_busy: bool

    @property
    def counts(self) -> bool:
        return self.by_two_routers and self.both_busy


class Client:
    """Sends requests, for each of which one router chooses a rank and informs the other."""

    def __init__(self, http: httpx.AsyncClient, received_before: int) -> None:
        self._http = http
        self._num_sent = received_before

    async def choose_pair(self) -> Pair:
        """Two requests that arrive while both ranks are in the middle of a step.

        The second is sent once the other router has received the reservation of the first.
        """
        busy = [self._send(LONG_TOKENS + rank * MORE_TOKENS, rank) for rank in (0, 1)]
        await until(self._all_received, "both reservations at the other router")
        pair = []
        for _ in range(2):
            pair.append(self._send(SHORT_TOKENS))
            await until(self._all_received, "the reservation at the other router")
        answers = await asyncio.gather(*pair)
        await asyncio.gather(*busy)
        receipts = [
            (await self._http.get(f"/router/decisions/{each.json()['id']}")).json() for each in answers
        ]
        attempts = [receipt["attempts"][-1] for receipt in receipts]
        return Pair(
            [int(answer.headers["x-dp-rank"]) for answer in answers],
            by_two_routers=len({attempt["router"] for attempt in attempts}) == 2,
            both_busy=all(row["waiting_tokens"] >= LONG_TOKENS for each in attempts for row in each["ranks"]),
        )

    def _send(self, num_tokens: int, rank: int | None = None) -> asyncio.Task[httpx.Response]:
        self._num_sent += 1
        return asyncio.create_task(self._complete(num_tokens, rank))

    async def _complete(self, num_tokens: int, rank: int | None) -> httpx.Response:
        body = {"prompt": new_prompt(num_tokens), "max_tokens": 1}
        headers = {} if rank is None else {"X-Data-Parallel-Rank": str(rank)}
        response = await self._http.post("/v1/completions", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response

    async def _all_received(self) -> bool:
        return await num_peer_reservations(self._http) == self._num_sent


async def num_peer_reservations(http: httpx.AsyncClient) -> int:
    routers = (await http.get("/router/stats")).json()
    assert len(routers) == 2
    return sum(router["heard_from_routers"]["reservations"] for router in routers)


def audited(graph: ServeGraph) -> list[bool | None]:
    """Whether each router that answers knows every block of both ranks."""
    routers = graph.http.get("/router/audit").json().get("routers", [])
    return [all(rank["equal"] for rank in router["ranks"]) for router in routers]
