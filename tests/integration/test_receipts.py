"""Why a request went to its rank, how it ended, and whether the router's index is correct: through HTTP."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.deadlines import until, wait_until
from tests.support.graph.exchanges import cached_tokens, new_prompt, refused
from tests.support.graph.serve_config import Json
from tests.support.graph.serve_graph import ServeGraph
from tests.support.graph.streams import Streams

NUM_HITS = 96
"""Of the 100 tokens of a `new_prompt`."""


def explain(graph: ServeGraph, body: Json, headers: dict[str, str] | None = None) -> Json:
    response = graph.http.post("/router/explain", json=body, headers=headers)
    assert response.status_code == 200, response.text
    receipt: Json = response.json()
    assert [row["rank"] for row in receipt["ranks"]] == [0, 1]
    return receipt


def decision(graph: ServeGraph, answer: httpx.Response, outcome: str = "finished") -> Json:
    """The receipt of an answer, once its outcome is known."""
    path = f"/router/decisions/{answer.json()['id']}"
    return wait_until(lambda: found if (found := graph.get(path))["outcome"] == outcome else {}, outcome)


def until_idle(graph: ServeGraph) -> None:
    """Wait until no load of earlier tests is counted anywhere: ranks report theirs some time later."""
    wait_until(
        lambda: all((each["num_requests"], each["waiting_tokens"]) == (0, 0) for each in router_view(graph)),
        "idle ranks",
    )


def router_view(graph: ServeGraph) -> list[Json]:
    ranks: list[Json] = graph.get("/router/ranks")
    return ranks


def decided(graph: ServeGraph) -> Json:
    (stats,) = graph.get("/router/stats")
    decisions: Json = stats["decisions"]
    return decisions


def test_explaining_reserves_and_caches_nothing(tiny_graph: ServeGraph) -> None:
    prompt = new_prompt()
    body = {"prompt": prompt, "max_tokens": 4}
    tiny_graph.wait_until_followed()
    until_idle(tiny_graph)
    before, decided_before = router_view(tiny_graph), decided(tiny_graph)
    for _ in range(3):
        receipt = explain(tiny_graph, body)
        assert (receipt["prompt_tokens"], receipt["prompt_blocks"]) == (100, 6)
        for row in receipt["ranks"]:
            assert (row["cached_tokens"], row["uncached_tokens"], row["waiting_tokens"]) == (0, 100, 0)
            assert (row["eligible"], row["why_not"], row["trust"]) == (True, None, "exact")
            assert row["prefill_tokens_per_s"] > 0
            assert row["predicted_ttft_s"] == pytest.approx(100 / row["prefill_tokens_per_s"])
    assert router_view(tiny_graph) == before
    assert decided(tiny_graph) == decided_before
    assert cached_tokens(tiny_graph.complete(prompt)) == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_the_rank_that_wins_the_dry_run_serves_the_request(tiny_graph: ServeGraph, rank: int) -> None:
    prompt = new_prompt()
    tiny_graph.complete(prompt, rank=rank)
    tiny_graph.wait_until_followed()
    until_idle(tiny_graph)
    receipt = explain(tiny_graph, {"prompt": prompt, "max_tokens": 4, "temperature": 0})
    assert (receipt["policy"], receipt["winner"], receipt["cached_tokens"]) == (
        "predicted_ttft",
        rank,
        NUM_HITS,
    )
    assert [row["cached_tokens"] for row in receipt["ranks"]] == [
        NUM_HITS * (rank == each) for each in (0, 1)
    ]
    assert f"rank {rank} has the lowest cost of predicted_ttft" in receipt["why"]
    answer = tiny_graph.complete(prompt)
    assert (answer.headers["x-dp-rank"], cached_tokens(answer)) == (str(rank), NUM_HITS)
    routed = decision(tiny_graph, answer)
    assert routed["rank"] == rank
    # The rank's own report of the first request may have changed its measured rate, not the rest.
    assert [row["cached_tokens"] for row in routed["attempts"][0]["ranks"]] == [
        row["cached_tokens"] for row in receipt["ranks"]
    ]


def test_a_chat_is_explained_as_it_is_served(tiny_graph: ServeGraph) -> None:
    words = " ".join(map(str, new_prompt(60)))
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": 2}
    answer = tiny_graph.http.post("/v1/chat/completions", json=body, headers={"X-Data-Parallel-Rank": "1"})
    tiny_graph.wait_until_followed()
    receipt = explain(tiny_graph, body)
    assert receipt["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert receipt["winner"] == 1
    assert receipt["cached_tokens"] > 100
    assert decision(tiny_graph, answer)["attempts"][0]["policy"] == "pinned"


def test_a_pinned_request_says_what_the_other_ranks_were(tiny_graph: ServeGraph) -> None:
    prompt = new_prompt()
    tiny_graph.complete(prompt, rank=0)
    tiny_graph.wait_until_followed()
    receipt = explain(tiny_graph, {"prompt": prompt}, {"X-Data-Parallel-Rank": "1"})
    assert (receipt["policy"], receipt["winner"], receipt["why"]) == ("pinned", 1, "the client named rank 1")
    other = receipt["ranks"][0]
    assert (other["eligible"], other["why_not"]) == (False, "the client named rank 1")
    assert (other["cached_tokens"], other["cost"]) == (NUM_HITS, None)
    assert explain(tiny_graph, {"prompt": prompt, "routed_dp_rank": 1})["winner"] == 1


def test_a_session_is_explained_as_it_is_routed(tiny_graph: ServeGraph) -> None:
    for number in range(4):
        body = {"prompt": new_prompt(), "max_tokens": 1}
        headers = {"x-session-id": f"session-{number}"}
        receipt = explain(tiny_graph, body, headers)
        assert (receipt["policy"], receipt["deferred_by"]) == ("session", None)
        assert receipt["why"].startswith(f"rank {receipt['winner']} is the session's own; ")
        answer = tiny_graph.http.post("/v1/completions", json=body, headers=headers)
        assert answer.headers["x-dp-rank"] == str(receipt["winner"])
    receipt = explain(tiny_graph, body)
    assert (receipt["policy"], receipt["deferred_by"]) == ("predicted_ttft", "session")


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"x-session-id": "a,b"}, "x-session-id"),
        ({"X-Data-Parallel-Rank": "7"}, "X-Data-Parallel-Rank"),
        ({"X-Data-Parallel-Rank": "-1"}, "X-Data-Parallel-Rank"),
    ],
)
def test_a_header_that_is_refused_is_named(
    tiny_graph: ServeGraph, headers: dict[str, str], param: str
) -> None:
    body = {"prompt": "a", "max_tokens": 1, "routed_dp_rank": 0}
    for path in ("/router/explain", "/v1/completions"):
        refused(tiny_graph.http.post(path, json=body, headers=headers), 400, param=param)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"prompt": ', None),
        (b'{"prompt": "a", "best_of": 3}', "best_of"),
        (b'{"prompt": "a", "temperature": 3}', "temperature"),
        (b'{"prompt": "a", "routed_dp_rank": 7}', "routed_dp_rank"),
        (b'{"messages": [], "max_tokens": 1}', "messages"),
        (b'{"messages": [{"role": "user", "content": "a"}], "prompt": "a"}', "prompt"),
        (b"[1]", None),
    ],
)
def test_explaining_refuses_what_a_completion_refuses(
    tiny_graph: ServeGraph, content: bytes, param: str | None
) -> None:
    path = "/v1/chat/completions" if b"messages" in content else "/v1/completions"
    message = refused(tiny_graph.http.post("/router/explain", content=content), 400, param=param)
    assert message == refused(tiny_graph.http.post(path, content=content), 400, param=param)


def test_a_prompt_that_no_rank_holds_is_refused_by_its_field(tiny_graph: ServeGraph) -> None:
    body = {"prompt": new_prompt(6000), "max_tokens": 1}
    refused(
        tiny_graph.http.post("/router/explain", json=body),
        400,
        param="prompt",
        code="context_length_exceeded",
    )


def test_a_decision_has_its_time_to_first_token_soon_after(tiny_graph: ServeGraph) -> None:
    answer = tiny_graph.complete(new_prompt())
    receipt = decision(tiny_graph, answer)
    assert receipt["rank"] == int(answer.headers["x-dp-rank"])
    assert receipt["failed_ranks"] == []
    assert 0 < receipt["actual_ttft_s"] < 30
    (attempt,) = receipt["attempts"]
    assert attempt["winner"] == receipt["rank"]
    assert attempt["prompt_tokens"] == 100
    assert tiny_graph.get(f"/router/decisions/{receipt['request_id']}") == receipt
    (stats,) = tiny_graph.get("/router/stats")
    assert stats["ttft_prediction_error_s"]["count"] > 0
    assert stats["ttft_prediction_error_s"]["mean_absolute"] > 0


def test_what_the_chosen_rank_missed_is_counted(tiny_graph: ServeGraph) -> None:
    """A queue at the rank that holds the prompt drives a request away from its prefix."""
    prompt = new_prompt()
    tiny_graph.complete(prompt, rank=0)
    tiny_graph.wait_until_followed()

    async def drive_away() -> None:
        async with Streams(tiny_graph) as streams:
            await streams.open(3, rank=0)
            streams.send(12, rank=0, prompt=new_prompt(2000), max_tokens=1)
            await until(lambda: waits(streams), "a queue on rank 0")
            (before,) = (await streams.http.get("/router/stats")).json()
            body = {"prompt": prompt, "max_tokens": 1}
            answer = await streams.http.post("/v1/completions", json=body)
            assert answer.headers["x-dp-rank"] == "1"
            (after,) = (await streams.http.get("/router/stats")).json()
            missed = [stats["regret_tokens"]["sum"] for stats in (before, after)]
            assert missed[1] - missed[0] == NUM_HITS
            attempt = (await streams.http.get(f"/router/decisions/{answer.json()['id']}")).json()["attempts"][
                0
            ]
            assert attempt["regret_tokens"] == NUM_HITS
            assert f"rank 0 holds {NUM_HITS} but has" in attempt["why"]

    async def waits(streams: Streams) -> bool:
        response = await streams.http.post("/router/explain", json={"prompt": prompt, "max_tokens": 1})
        winner: int = response.json()["winner"]
        return winner == 1

    asyncio.run(drive_away())


async def test_a_stream_is_answering_until_its_client_disconnects(tiny_graph: ServeGraph) -> None:
    async with Streams(tiny_graph) as streams:
        body = {"prompt": new_prompt(), "max_tokens": 2000, "ignore_eos": True, "stream": True}
        async with streams.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.aiter_lines()  # kept: the connection ends with it
            line = await anext(lines)
            request_id = line.split('"id":"')[1].split('"')[0]
            await until(lambda: stands(streams, request_id, "answering"), "a first token")
        await until(lambda: stands(streams, request_id, "aborted"), "the end")


async def stands(streams: Streams, request_id: str, outcome: str) -> bool:
    receipt = (await streams.http.get(f"/router/decisions/{request_id}")).json()
    return receipt["outcome"] == outcome and receipt["actual_ttft_s"] is not None


@pytest.mark.parametrize("request_id", ["cmpl-0123456789abcdef", "unknown", "%0A", "a" * 3000])
def test_an_unknown_request_is_not_found(tiny_graph: ServeGraph, request_id: str) -> None:
    response = tiny_graph.http.get(f"/router/decisions/{request_id}")
    message = refused(response, 404, param="request_id", code="decision_not_found")
    assert len(message) < 200


def test_the_index_is_correct_under_traffic_with_evictions(tiny_graph: ServeGraph) -> None:
    """Three times what the caches hold goes through them; audits meanwhile find no false difference."""
    prompts = [new_prompt(1000) for _ in range(24)]
    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(tiny_graph.complete, prompt) for prompt in prompts]
        audits = []
        while not all(answer.done() for answer in answers):
            audits.append(tiny_graph.audit())
        assert all(answer.result().status_code == 200 for answer in answers)
    assert len(audits) > 3
    assert len({rank["snapshot_seq"] for ranks in audits for rank in ranks}) > 3, "nothing moved"
    tiny_graph.wait_until_followed()
    for rank, known in zip(tiny_graph.audit(), router_view(tiny_graph), strict=True):
        assert rank["num_rank_blocks"] == rank["num_router_blocks"] == known["num_blocks"]
        assert rank["num_rank_blocks"] > 200, "hardly anything cached"
