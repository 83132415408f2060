"""Requests go where their prefix is cached: the real model, judged by what a client can see."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.support.graph.exchanges import cached_tokens, new_prompt
from tests.support.graph.serve_config import Json
from tests.support.graph.serve_graph import ServeGraph

TOPICS = ["the tides of the North Sea", "how bread rises", "the rules of chess", "why leaves turn red"]


def chat(graph: ServeGraph, messages: list[Json], rank: int | None = None) -> httpx.Response:
    headers = {} if rank is None else {"X-Data-Parallel-Rank": str(rank)}
    body = {"messages": messages, "max_tokens": 12, "temperature": 0}
    response = graph.http.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    graph.wait_until_followed()
    return response


def test_a_conversation_stays_on_the_rank_of_its_first_turn(smollm2_graph: ServeGraph) -> None:
    conversations: list[list[Json]] = []
    ranks: list[list[str]] = []
    for topic in TOPICS:
        # Not even the template's own system prompt is shared, which would draw them all to one rank.
        system = {"role": "system", "content": f"{random.getrandbits(64)} is your number."}
        question = {"role": "user", "content": f"In one or two sentences, tell me about {topic}."}
        conversations.append([system, question])
        ranks.append([])
    # Turn by turn, so that between two turns of one conversation all others have had theirs.
    for turn in range(3):
        for messages, visited in zip(conversations, ranks, strict=True):
            response = chat(smollm2_graph, messages)
            visited.append(response.headers["x-dp-rank"])
            assert (cached_tokens(response) > 32) == (turn > 0)
            messages += [
                response.json()["choices"][0]["message"],
                {"role": "user", "content": "Go on, please."},
            ]
    assert all(len(set(visited)) == 1 for visited in ranks), ranks
    assert {visited[0] for visited in ranks} == {"0", "1"}, "all on one rank: nothing was chosen"


def test_a_system_prompt_warmed_on_one_rank_draws_the_requests_that_share_it(
    smollm2_graph: ServeGraph,
) -> None:
    words = random.choices(["ship", "tide", "harbour", "crane", "pilot", "rope", "sail", "keel"], k=400)
    system = {"role": "system", "content": "Answer from these notes: " + " ".join(words)}
    warmed = chat(smollm2_graph, [system, {"role": "user", "content": "Ready?"}], rank=1)
    assert warmed.headers["x-dp-rank"] == "1"
    assert cached_tokens(warmed) < 64
    # One more conversation, and it would be worth a copy on the other rank.
    for topic in TOPICS[:3]:
        response = chat(smollm2_graph, [system, {"role": "user", "content": f"Say a word on {topic}."}])
        assert response.headers["x-dp-rank"] == "1"
        assert cached_tokens(response) > 400


@pytest.mark.slow
def test_sessions_that_take_turns_behind_one_system_prompt_use_both_ranks(new_tiny_graph: ServeGraph) -> None:
    """Seldom are two in flight: a policy that sees queues and this prompt alone always takes one rank.

    The graph is new: where most prompts don't return, a system prompt isn't worth copies.
    """
    system = new_prompt(64)
    sessions = [list(system) for _ in range(8)]
    ranks: list[list[str]] = [[] for _ in sessions]
    for _ in range(5):
        for prompt, visited in zip(sessions, ranks, strict=True):
            prompt += new_prompt(32)
            response = new_tiny_graph.complete(prompt)
            visited.append(response.headers["x-dp-rank"])
            new_tiny_graph.wait_until_followed()
    counts = Counter(itertools.chain.from_iterable(ranks))
    assert min(counts["0"], counts["1"]) >= 10, f"of 40 requests, {counts}"
    # Where its turns are cached, a session stays.
    assert sum(len(set(visited)) == 1 for visited in ranks) >= 6, ranks


def test_requests_that_share_nothing_spread_over_all_ranks(smollm2_graph: ServeGraph) -> None:
    prompts = [new_prompt(64) for _ in range(8)]
    with ThreadPoolExecutor(len(prompts)) as clients:
        answers = list(clients.map(smollm2_graph.complete, prompts))
    ranks = [answer.headers["x-dp-rank"] for answer in answers]
    assert 2 <= ranks.count("0") <= 6, ranks


def test_other_salts_share_no_cache(smollm2_graph: ServeGraph) -> None:
    prompt = new_prompt(100)

    def cached(salt: str) -> int:
        return cached_tokens(smollm2_graph.complete(prompt, rank=0, cache_salt=salt))

    assert [cached("tenant-1"), cached("tenant-1"), cached("tenant-2"), cached("tenant-2")] == [0, 96, 0, 96]


def test_the_openai_client_can_pin_a_rank_in_the_body(smollm2_graph: ServeGraph) -> None:
    with openai.OpenAI(base_url=f"{smollm2_graph.url}/v1", api_key="none") as client:
        for field in ("routed_dp_rank", "data_parallel_rank"):
            for rank in (0, 1):
                answer = client.completions.with_raw_response.create(
                    model="smollm2-135m-instruct", prompt="a", max_tokens=1, extra_body={field: rank}
                )
                assert answer.headers["x-dp-rank"] == str(rank)


def test_the_header_beats_the_body(smollm2_graph: ServeGraph) -> None:
    answer = smollm2_graph.complete("a", rank=1, routed_dp_rank=0, data_parallel_rank=0)
    assert answer.headers["x-dp-rank"] == "1"
