"""A client that disconnects leaves nothing behind: no block, no place in a queue, no reservation."""

from __future__ import annotations

from tests.support.deadlines import until
from tests.support.graph.serve_graph import ServeGraph
from tests.support.graph.streams import LONG, Streams

FREED_S = 4
"""Far less than the requests would take to end by themselves."""


async def until_idle(streams: Streams) -> None:
    """Wait until rank 0 and the router agree that it has nothing to do."""

    async def is_idle() -> bool:
        load = await streams.load(0)
        rank = (await streams.http.get("/router/ranks")).json()[0]
        held = (load["num_running_reqs"], load["num_waiting_reqs"], load["num_tokens"])
        return held == (0, 0, 0) and (rank["num_requests"], rank["waiting_tokens"]) == (0, 0)

    await until(is_idle, "rank 0 idle", FREED_S)


async def test_disconnecting_from_a_stream_frees_its_blocks(tiny_graph: ServeGraph) -> None:
    async with Streams(tiny_graph) as streams:
        opened = await streams.open(2, rank=0)
        await streams.until_load(0, num_running_reqs=2)
        assert (await streams.load(0))["num_tokens"] > 0
        await streams.disconnect()
        assert all(stream.ended is None for stream in opened), "they ended by themselves"
        await until_idle(streams)


async def test_disconnecting_before_the_answer_in_one_piece(tiny_graph: ServeGraph) -> None:
    async with Streams(tiny_graph) as streams:
        streams.send(2, rank=0, **LONG)
        await streams.until_load(0, num_running_reqs=2)
        sent = streams.sent
        await streams.disconnect()
        assert all(task.cancelled() for task in sent), "they ended by themselves"
        await until_idle(streams)


async def test_disconnecting_while_waiting_for_the_first_token(tiny_graph: ServeGraph) -> None:
    async with Streams(tiny_graph) as waiting, Streams(tiny_graph) as running:
        await running.open(3, rank=0)
        waiting.send(3, rank=0)
        waiting.send(3, rank=0, stream=True)
        await running.until_load(0, num_running_reqs=3, num_waiting_reqs=6)
        await waiting.disconnect()
        await running.until_load(0, num_running_reqs=3, num_waiting_reqs=0)
        router = await running.http.get("/router/ranks")
        assert router.json()[0]["waiting_tokens"] == 0
        await running.disconnect()
        await until_idle(running)


async def test_many_that_disconnect_at_once_leave_the_rank_as_it_was(tiny_graph: ServeGraph) -> None:
    async with Streams(tiny_graph) as streams:
        for _ in range(5):
            streams.send(4, rank=0, **LONG)
            streams.send(4, rank=0, stream=True, **LONG)
            await streams.until_load(0, num_running_reqs=3, num_waiting_reqs=5)
            await streams.disconnect()
        await until_idle(streams)
        answer = await streams.http.post(
            "/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"X-Data-Parallel-Rank": "0"}
        )
        assert answer.status_code == 200
