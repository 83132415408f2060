"""Whatever clients do, the load that the router counts goes back to nothing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import httpx

from tests.integration.serve_graph import Json, ServeGraph
from tests.integration.streams import until

NUM_REQUESTS = 150
NUM_CLIENTS = 16
ABORTING = 0.3
"""Share of the requests whose client hangs up, unless it was answered before."""
LONGEST_PATIENCE_S = 0.3
SETTLED_S = 10


async def test_load_is_back_to_zero_after_clients_that_hang_up(tiny_graph: ServeGraph) -> None:
    outcomes: Counter[str] = Counter()
    async with httpx.AsyncClient(base_url=tiny_graph.url, timeout=120) as http:
        numbers = iter(range(NUM_REQUESTS))
        async with asyncio.TaskGroup() as clients:
            for _ in range(NUM_CLIENTS):
                clients.create_task(client(http, numbers, outcomes))
        assert outcomes.total() == NUM_REQUESTS
        assert outcomes["200"] + outcomes["aborted"] == NUM_REQUESTS, outcomes
        assert outcomes["aborted"] > 0.1 * NUM_REQUESTS, outcomes
        await until(lambda: is_idle(http), "no load on any rank", SETTLED_S)


async def client(http: httpx.AsyncClient, numbers: Iterator[int], outcomes: Counter[str]) -> None:
    """Send requests one after another, and hang up on some of them at a random moment."""
    for _ in numbers:
        patience = random.uniform(0, LONGEST_PATIENCE_S) if random.random() < ABORTING else None
        body = {
            "prompt": random.choices(range(1000, 40_000), k=random.randrange(1, 200)),
            "max_tokens": random.randrange(1, 12),
            "ignore_eos": True,
            "stream": random.random() < 0.5,
        }
        outcomes[await ask(http, body, patience)] += 1


async def ask(http: httpx.AsyncClient, body: Json, patience_s: float | None) -> str:
    try:
        async with asyncio.timeout(patience_s):
            response = await http.post("/v1/completions", json=body)
    except TimeoutError:
        return "aborted"
    return str(response.status_code)


async def is_idle(http: httpx.AsyncClient) -> bool:
    """Whether both ranks and the router count nothing any more."""
    known = (await http.get("/router/ranks")).json()
    states = (await http.get("/server_info")).json()["internal_states"]
    counted = [(each["num_requests"], each["waiting_tokens"]) for each in known]
    held = [
        (each["load"]["num_running_reqs"], each["load"]["num_waiting_reqs"], each["load"]["num_tokens"])
        for each in states
    ]
    return counted == [(0, 0)] * 2 and held == [(0, 0, 0)] * 2
