"""`kill -9` of the only router under load."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.support.deadlines import until
from tests.support.graph.exchanges import cached_tokens, new_prompt
from tests.support.graph.serve_graph import ServeGraph
from tests.support.graph.streams import Streams

RETURN_S = 60
ARRIVAL_S = 0.2
"""So slow that all requests that wait for a router find room in the ranks' queues when it comes."""


async def test_requests_wait_for_the_next_router_which_soon_knows_every_block(tiny_graph: ServeGraph) -> None:
    graph = tiny_graph
    prompts = [new_prompt(330) for _ in range(8)]
    for number, prompt in enumerate(prompts):
        graph.complete(prompt, rank=number % 2)
    graph.wait_until_followed()
    (router,) = graph.pids("Router")

    num_known: list[int] = []

    async with Streams(graph) as streams:
        (survivor,) = await streams.open(1, rank=0)
        async with streams.arriving(ARRIVAL_S):
            os.kill(router, signal.SIGKILL)
            num_pieces = survivor.num_pieces
            await until(lambda: is_back(streams, num_known), "a router that knows both ranks", RETURN_S)
            assert set(num_known) == {2}, "a router that answers knows the ranks, if not their caches yet"
            assert survivor.ended is None, "it ended before it was tested"
            assert survivor.num_pieces > num_pieces + 100, "tokens need no router"
        answers = await asyncio.gather(*streams.sent)
        assert len(answers) >= 5, "hardly any requests meanwhile"
        assert [answer.status_code for answer in answers] == [200] * len(answers)

    assert graph.pids("Router") != [router]
    for rank in graph.audit():
        assert rank["num_router_blocks"] >= 4 * (330 // 16)
    for number, prompt in enumerate(prompts):
        answer = graph.complete(prompt)
        assert (answer.headers["x-dp-rank"], cached_tokens(answer)) == (str(number % 2), 320)


async def is_back(streams: Streams, num_known: list[int]) -> bool:
    """Whether the router knows both caches; records how many ranks each of its answers has."""
    response = await streams.http.get("/router/ranks")
    if response.status_code != 200:
        return False
    trusts = [each["trust"] for each in response.json()]
    num_known.append(len(trusts))
    return trusts == ["exact", "exact"]
