"""A graph whose ports the system chooses: ranks are followed, also after a restart with other ports."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.deadlines import wait_until
from tests.support.graph.exchanges import cached_tokens, new_prompt
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import Json, tiny_args
from tests.support.graph.serve_graph import ServeGraph

RETURN_S = 90
EVENTS = {"publisher": "zmq", "endpoint": "tcp://127.0.0.1:0", "replay_endpoint": "tcp://127.0.0.1:0"}


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str) -> ServeGraph:
    return graphs.get({"/": {**tiny_args(tiny_model), "kv_events_config": EVENTS}})


def ports_of(publisher: Json) -> set[int]:
    return {publisher[key] for key in ("event_port", "replay_port", "load_port")}


def test_a_rank_is_followed_at_the_ports_that_it_got_and_after_a_restart_at_others(graph: ServeGraph) -> None:
    before = graph.get("/server_info")
    assert (before["kv_events"], before["kv_events_config"]) == (None, EVENTS)
    assert len(set.union(*map(ports_of, before["publishers"]))) == 6
    prompt = new_prompt(320)
    graph.complete(prompt, rank=1)
    graph.wait_until_followed()
    graph.audit()
    again = graph.complete(prompt)
    assert (again.headers["x-dp-rank"], cached_tokens(again)) == ("1", 304)

    os.kill(before["internal_states"][1]["pid"], signal.SIGKILL)

    def publishes_again() -> Json | None:
        publisher: Json = graph.get("/server_info")["publishers"][1]
        is_new = publisher["state"] == "publishing" and publisher["epoch"] != before["publishers"][1]["epoch"]
        return publisher if is_new else None

    after = wait_until(publishes_again, "rank 1 publishes again", RETURN_S, interval_s=0.2)
    assert ports_of(after) != ports_of(before["publishers"][1])

    def is_exact() -> bool:
        known = graph.router_rank(1)
        return known is not None and known["trust"] == "exact"

    wait_until(is_exact, lambda: graph.get("/router/ranks"), RETURN_S)
    assert cached_tokens(graph.complete(prompt, rank=1)) == 0
    graph.wait_until_followed()
    graph.audit()
    assert graph.complete(prompt).headers["x-dp-rank"] == "1"
