"""Why tokens weren't cached, for each reason once: with SmolLM2, by clients that make it happen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.misses import main
from tests.support.deadlines import wait_until
from tests.support.graph.exchanges import new_prompt
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import Json
from tests.support.graph.serve_graph import ServeGraph

HEADER = "x-kvbeacon-cache"
NUM_BLOCKS = 128
"""Of 16 tokens, on each rank."""
RULES = "\n".join(f"Rule {number}: be brief, and never say the word number {number}." for number in range(20))


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str) -> ServeGraph:
    """Two ranks of SmolLM2 with small caches, and texts for routers; and a rank that publishes nothing."""
    seeing = {
        "engine": {"cache": {"num_blocks": NUM_BLOCKS}},
        "routing": {"misses": {"texts": True}},
        "ingress": {"allow_flush_cache": True},
    }
    blind = {
        "dp_size": 1,
        "model": {"path": tiny_model, "served_name": "tiny"},
        "kv_events_config": None,
    }
    return graphs.get({"/": seeing, "/blind": blind})


def ask(graph: ServeGraph, prompt: list[int] | list[Json], rank: int = 0, **fields: Any) -> httpx.Response:
    """A chat if the prompt is messages."""
    is_chat = isinstance(prompt[0], dict)
    path, field = ("/v1/chat/completions", "messages") if is_chat else ("/v1/completions", "prompt")
    body = {field: prompt, "max_tokens": 4, "temperature": 0, **fields}
    answer = graph.http.post(path, json=body, headers={"X-Data-Parallel-Rank": str(rank)})
    assert answer.status_code == 200, answer.text
    graph.wait_until_followed()
    return answer


def missed(graph: ServeGraph, answer: httpx.Response, prefix: str = "") -> Json:
    """The receipt's part on misses, once all of it is known. It sums to what the answer says."""
    usage = answer.json()["usage"]
    uncached = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    path = f"{prefix}/router/decisions/{answer.json()['id']}"

    def known() -> Json:
        receipt: Json = graph.get(path)
        found: Json = receipt["attempts"][-1]["missed"]
        return found if receipt["outcome"] == "finished" and found["noted"] else {}

    found = wait_until(known, "the misses")
    assert found["tokens"] == uncached == sum(found["by_reason"].values())
    header = [part.split("=") for part in answer.headers[HEADER].split()]
    assert sum(int(number.split("@")[0]) for _, number in header) == usage["prompt_tokens"]
    return found


def clocked(time: str) -> list[Json]:
    system = f"You are a clerk. The time is {time}.\n{RULES}"
    return [{"role": "system", "content": system}, {"role": "user", "content": "Who are you?"}]


def test_new(graph: ServeGraph) -> None:
    assert missed(graph, ask(graph, new_prompt(100)))["by_reason"] == {"new": 96, "tail": 4}


def test_diverged(graph: ServeGraph) -> None:
    prompt = new_prompt(100)
    ask(graph, prompt)
    found = missed(graph, ask(graph, prompt[:64] + new_prompt(36)))
    assert found["by_reason"] == {"diverged": 16, "new": 16, "tail": 4}
    assert found["changed_at"] == {"token": 64}


def test_volatile_to_the_word_and_in_the_operators_table(
    graph: ServeGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(graph, clocked("12:01:33"))
    # So long an answer that its header and its usage have the reasons.
    answer = ask(graph, clocked("12:01:47"), max_tokens=48, ignore_eos=True)
    found = missed(graph, answer)
    assert found["by_reason"]["volatile"] > 200
    change = found["changed_at"]
    assert (change["message"], change["role"], change["line"]) == (0, "system", 0)
    assert (change["before"], change["after"]) == ("12:01:33.", "12:01:47.")
    assert change["around"][0].endswith("The time is ")
    details = answer.json()["usage"]["prompt_tokens_details"]
    assert details["volatile_tokens"] == found["by_reason"]["volatile"]
    assert f"volatile={details['volatile_tokens']}@{change['token']}" in answer.headers[HEADER].split()
    table = graph.get("/router/misses")
    row = next(row for row in table["rows"] if row["reason"] == "volatile")
    assert (row["tenant"], row["place"]["after"]) == (None, "12:01:47.")
    assert table["missed_tokens"]["volatile"] >= row["tokens"] >= details["volatile_tokens"]
    assert main([graph.url]) == 0
    assert "['12:01:33.' → '12:01:47.']" in capsys.readouterr().out


def test_elsewhere(graph: ServeGraph) -> None:
    prompt = new_prompt(100)
    ask(graph, prompt, rank=0)
    found = missed(graph, ask(graph, prompt, rank=1))
    assert found["by_reason"] == {"elsewhere": 96, "tail": 4}
    assert (found["runs"][0]["rank"], found["runs"][0]["num_requests"]) == (0, 0)


def test_computing(graph: ServeGraph) -> None:
    prompt = new_prompt(1500)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, graph, prompt, 0)
        wait_until(lambda: graph.get("/router/ranks")[0]["num_requests"] > 0, "a request on its way")
        found = missed(graph, ask(graph, prompt, rank=1))
        first.result()
    run = next(run for run in found["runs"] if run["reason"] == "computing")
    assert run["rank"] == 0


def test_evicted(graph: ServeGraph) -> None:
    prompt = new_prompt(100)
    ask(graph, prompt)
    for _ in range(2):
        ask(graph, new_prompt(1200), max_tokens=1)
    found = missed(graph, ask(graph, prompt))
    assert found["by_reason"] == {"evicted": 96, "tail": 4}
    run = found["runs"][0]
    assert run["rank"] == 0
    assert 0 < run["ago_s"] < 600
    assert 0 < run["age_s"] < 600


def test_lost(graph: ServeGraph) -> None:
    prompt = new_prompt(100)
    ask(graph, prompt)
    assert graph.http.post("/flush_cache").status_code == 200
    wait_until(lambda: graph.get("/router/ranks")[0]["num_blocks"] == 0, "an empty cache")
    assert missed(graph, ask(graph, prompt))["by_reason"] == {"lost": 96, "tail": 4}


def test_unknown(graph: ServeGraph) -> None:
    body = {"prompt": new_prompt(100), "max_tokens": 2}
    answer = graph.http.post("/blind/v1/completions", json=body)
    assert missed(graph, answer, "/blind")["by_reason"] == {"unknown": 96, "tail": 4}


def test_all_reasons_are_counted(graph: ServeGraph) -> None:
    (stats,) = graph.get("/router/stats")
    assert all(tokens > 0 for reason, tokens in stats["missed_tokens"].items() if reason != "unknown")
    table = graph.get("/router/misses")
    assert table["missed_tokens"] == stats["missed_tokens"]
    assert sum(row["tokens"] for row in graph.get("/router/misses?limit=1000")["rows"]) == sum(
        stats["missed_tokens"].values()
    )
    assert table["routers"][0]["memory"]["prompt_blocks"] > 0


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1001", ""])
def test_a_limit_that_is_none_is_refused(graph: ServeGraph, limit: str) -> None:
    answer = graph.http.get("/router/misses", params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
