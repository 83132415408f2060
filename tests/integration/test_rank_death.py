"""`kill -9` of a rank under load."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

import httpx
import pytest

from tests.support.deadlines import until
from tests.support.graph.exchanges import cached_tokens, new_prompt
from tests.support.graph.serve_config import Json
from tests.support.graph.serve_graph import ServeGraph
from tests.support.graph.streams import Stream, Streams

RETURN_S = 90
ANSWERED_S = 150
"""On a busy machine: an answer that goes on elsewhere waits there behind those that run."""
ANSWER: Json = {"max_tokens": 500, "ignore_eos": True, "temperature": 1.0}
SEEDS = (1, 2)


@pytest.mark.slow
async def test_a_rank_that_is_killed_under_load_takes_nothing_with_it(new_tiny_graph: ServeGraph) -> None:
    graph = new_tiny_graph
    prompt = new_prompt(320)
    graph.complete(prompt, rank=1)
    assert cached_tokens(graph.complete(prompt, rank=1)) == 304
    graph.wait_until_followed()
    before = graph.get("/server_info")
    replica_before = graph.router_rank(1)

    async with Streams(graph) as streams:
        survivors = await streams.open(3, rank=0, max_tokens=600)
        # They go to rank 1 because of their prompt, and may go elsewhere; the last one may not.
        doomed = [
            (await streams.open(1, prompt=prompt, seed=seed, stream_options=USAGE, **ANSWER))[0]
            for seed in SEEDS
        ]
        (pinned,) = await streams.open(1, rank=1, max_tokens=500)
        assert [stream.rank for stream in (*doomed, pinned)] == [1, 1, 1]
        # Both ranks run as many requests as they may, so that these wait on either rank and none has begun.
        streams.send(12)
        await until(lambda: all_wait(streams), "requests that wait on rank 1")
        assert [stream.ended for stream in (*doomed, pinned)] == [None] * 3, "they ended by themselves"
        os.kill(before["internal_states"][1]["pid"], signal.SIGKILL)

        async with streams.arriving():
            await until(lambda: have_ended(doomed), lambda: [vars(each) for each in doomed], ANSWERED_S)
            assert [stream.ended for stream in doomed] == ["[DONE]"] * len(SEEDS)
            for stream in doomed:
                assert stream.usage is not None
                assert stream.usage["completion_tokens"] == ANSWER["max_tokens"]
                assert stream.usage["prompt_tokens_details"]["cached_tokens"] == 304, "as rank 1 had them"
            await check_resumed(streams, doomed)

            await until(lambda: is_back(streams, before), "rank 1 back", RETURN_S)
        answers = await asyncio.gather(*streams.sent)
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        assert {answer.headers["x-dp-rank"] for answer in answers[:12]} == {"0"}, "retried where ranks live"
        await check_receipts(streams, answers[:12])
        await until(lambda: have_ended([*survivors, pinned]), "the others' end", ANSWERED_S)
        assert [stream.ended for stream in survivors] == ["[DONE]"] * 3
        assert pinned.ended == "[DONE]", pinned.message
        assert [stream.text for stream in doomed] == await undisturbed_texts(streams, prompt)

    graph.wait_until_followed()
    after = graph.get("/server_info")
    old, new = before["publishers"][1], after["publishers"][1]
    assert new["epoch"] != old["epoch"]
    assert (new["event_port"], new["replay_port"]) == (old["event_port"], old["replay_port"])
    assert after["internal_states"][1]["pid"] != before["internal_states"][1]["pid"]
    assert after["publishers"][0]["epoch"] == before["publishers"][0]["epoch"]
    known = graph.router_rank(1)
    assert known is not None
    assert replica_before is not None
    assert known["trust"] == "exact"
    assert known["replica_id"] != replica_before["replica_id"]
    # Blocks that only the dead rank held are gone.
    assert known["num_blocks"] == after["internal_states"][1]["num_cached_blocks"]
    assert cached_tokens(graph.complete(prompt, rank=1)) == 0
    graph.wait_until_followed()
    graph.audit()


USAGE = {"include_usage": True}


async def undisturbed_texts(streams: Streams, prompt: list[int]) -> list[str]:
    """The answers to `prompt`, one for each seed, of a rank that nothing happens to."""
    asked = [
        streams.http.post(
            "/v1/completions",
            json={"prompt": prompt, "seed": seed, **ANSWER},
            headers={"X-Data-Parallel-Rank": "0"},
        )
        for seed in SEEDS
    ]
    return [answer.json()["choices"][0]["text"] for answer in await asyncio.gather(*asked)]


def have_ended(streams: Sequence[Stream]) -> bool:
    return all(stream.ended is not None for stream in streams)


async def all_wait(streams: Streams) -> bool:
    waiting: list[int] = [(await streams.load(rank))["num_waiting_reqs"] for rank in (0, 1)]
    return sum(waiting) == len(streams.sent) and waiting[1] > 0


async def receipt_of(streams: Streams, answer_id: str) -> Json:
    receipt: Json = (await streams.http.get(f"/router/decisions/{answer_id}")).json()
    return receipt


async def check_resumed(streams: Streams, doomed: Sequence[Stream]) -> None:
    """Their receipts say where they were, and that they were resumed where they ended."""
    for stream in doomed:
        receipt = await receipt_of(streams, stream.answer_id)
        died, resumed = receipt["attempts"]
        assert (receipt["failed_ranks"], receipt["rank"]) == ([1], 0)
        assert (died["winner"], died["outcome"], died["resumed"]) == (1, "died", False)
        assert died["actual_ttft_s"] is not None
        assert (resumed["winner"], resumed["resumed"]) == (0, True)
        assert 0 < resumed["output_tokens"] < ANSWER["max_tokens"]
    (stats,) = (await streams.http.get("/router/stats")).json()
    assert stats["resumed"] >= len(doomed)


async def check_receipts(streams: Streams, answers: list[httpx.Response]) -> None:
    """The receipts of those that waited on rank 1 have an attempt there and one on rank 0."""
    receipts = [await receipt_of(streams, answer.json()["id"]) for answer in answers]
    retried = [receipt for receipt in receipts if receipt["failed_ranks"]]
    assert retried
    for receipt in retried:
        failed, served = receipt["attempts"]
        assert (receipt["failed_ranks"], receipt["rank"]) == ([1], 0)
        assert (failed["winner"], failed["outcome"], failed["actual_ttft_s"]) == (1, "died", None)
        assert (served["winner"], served["failed_ranks"], served["resumed"]) == (0, [1], False)
        assert served["ranks"][1]["why_not"] == "the request has failed there already"


async def is_back(streams: Streams, before: Json) -> bool:
    """Whether rank 1 is another publisher than before and the router knows its cache."""
    info = (await streams.http.get("/server_info")).json()
    known: dict[int, str] = {
        each["rank"]: each["trust"] for each in (await streams.http.get("/router/ranks")).json()
    }
    epoch: str | None = info["publishers"][1].get("epoch")
    return epoch not in (None, before["publishers"][1]["epoch"]) and known.get(1) == "exact"
