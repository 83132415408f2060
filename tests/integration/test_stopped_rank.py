"""A rank whose whole process stands still: routed around, back when it goes on, replaced when it lasts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.deadlines import wait_until
from tests.support.graph.exchanges import cached_tokens, new_prompt
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import tiny_args
from tests.support.graph.serve_graph import ServeGraph

STALL_TIMEOUT_S = 3.0
SUSPECT_WITHIN_S = 15.0
"""On a busy machine; 3.5 s were seen."""
REPLACED_WITHIN_S = 120.0


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str) -> Iterator[ServeGraph]:
    args = tiny_args(tiny_model)
    args["engine"]["stall_timeout_s"] = STALL_TIMEOUT_S
    yield graphs.get({"/": args})
    graphs.stop()


@pytest.mark.slow
def test_a_stopped_rank_is_routed_around_back_when_it_goes_on_and_replaced_when_it_lasts(
    graph: ServeGraph,
) -> None:
    prompt = new_prompt(320)
    for rank in (0, 1):
        graph.complete(prompt, rank=rank)
    graph.wait_until_followed()
    before = graph.get("/server_info")
    pid = before["internal_states"][1]["pid"]

    stopped_at = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: reason(graph), "rank 1 is suspect", SUSPECT_WITHIN_S)
        print("suspect_after_s", time.monotonic() - stopped_at)
        assert "no answer for" in reason(graph)
        known = graph.router_rank(1)
        assert known is not None
        assert known["unavailable"] == reason(graph)
        for _ in range(5):
            began = time.monotonic()
            assert graph.complete(prompt).headers["x-dp-rank"] == "0"
            assert time.monotonic() - began < STALL_TIMEOUT_S
        pinned = graph.http.post(
            "/v1/completions", json={"prompt": prompt}, headers={"X-Data-Parallel-Rank": "1"}
        )
        assert pinned.status_code == 503
        assert "no answer for" in pinned.json()["error"]["message"]
    finally:
        os.kill(pid, signal.SIGCONT)
    went_on_at = time.monotonic()
    wait_until(lambda: not reason(graph), "rank 1 is back", SUSPECT_WITHIN_S)
    print("back_after_s", time.monotonic() - went_on_at)
    graph.wait_until_followed()
    graph.audit()
    after = graph.get("/server_info")
    assert after["internal_states"][1]["pid"] == pid
    assert after["publishers"][1]["epoch"] == before["publishers"][1]["epoch"]
    assert cached_tokens(graph.complete(prompt, rank=1)) == 304

    replica_id = after["internal_states"][1]["replica_id"]
    os.kill(pid, signal.SIGSTOP)
    stopped_at = time.monotonic()

    def is_replaced() -> bool:
        able = [each["replica_id"] for each in graph.get("/router/ranks") if each["unavailable"] is None]
        return len(able) == 2 and replica_id not in able

    wait_until(is_replaced, "another replica takes requests", REPLACED_WITHIN_S)
    print("replaced_after_s", time.monotonic() - stopped_at)
    assert graph.complete(new_prompt(320)).status_code == 200


def reason(graph: ServeGraph) -> str:
    """Why rank 1 takes no requests, as `/health` says; empty if it does."""
    missing = graph.get("/health")["missing"]
    return next((each["reason"] for each in missing if each["rank"] == 1), "")
