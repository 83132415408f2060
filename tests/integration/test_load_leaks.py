"""When clients disconnect and ingresses die, the load that the router counts still goes back to zero."""

from __future__ import annotations

import os
import signal
import time

import httpx

from benchmarks.load_leaks.disconnects import Crowd, Traffic
from tests.support.deadlines import until
from tests.support.graph.serve_graph import ServeGraph

NUM_REQUESTS = 150
SETTLED_S = 10
TRAFFIC = Traffic(num_requests=NUM_REQUESTS, num_clients=16, aborting=0.3, token_ids=range(1000, 40_000))


async def test_load_is_back_to_zero_after_clients_that_disconnect(tiny_graph: ServeGraph) -> None:
    async with httpx.AsyncClient(base_url=tiny_graph.url, timeout=None) as http:
        crowd = Crowd(http, TRAFFIC)
        await crowd.run()
        assert crowd.failures == []
        assert crowd.outcomes.total() == NUM_REQUESTS
        assert set(crowd.aborted) == {"at_once", "waiting", "streaming", "at_the_end"}, crowd.aborted
        assert crowd.outcomes["aborted"] > 0.1 * NUM_REQUESTS
        await until(lambda: is_idle(http), "no load on any rank", SETTLED_S)


async def test_load_is_back_to_zero_after_an_ingress_is_killed(tiny_graph: ServeGraph) -> None:
    """The only one: the requests that it had are lost, later ones wait for Ray's replacement."""
    killed_at: list[float] = []

    def kill_half_way(num_ended: int) -> None:
        if num_ended == NUM_REQUESTS // 2:
            (pid,) = tiny_graph.pids("Ingress")
            os.kill(pid, signal.SIGKILL)
            killed_at.append(time.monotonic())

    async with httpx.AsyncClient(base_url=tiny_graph.url, timeout=None) as http:
        crowd = Crowd(http, TRAFFIC, kill_half_way)
        await crowd.run()
        assert crowd.outcomes.total() == NUM_REQUESTS
        assert all(failure.at > killed_at[0] for failure in crowd.failures), crowd.failures
        assert 0 < len(crowd.failures) <= 2 * TRAFFIC.num_clients, crowd.failures
        await until(lambda: is_idle(http), "no load on any rank", SETTLED_S)


async def is_idle(http: httpx.AsyncClient) -> bool:
    """Whether both ranks and the router count no load any more."""
    known = (await http.get("/router/ranks")).json()
    states = (await http.get("/server_info")).json()["internal_states"]
    counted = [(each["num_requests"], each["waiting_tokens"]) for each in known]
    held = [
        (each["load"]["num_running_reqs"], each["load"]["num_waiting_reqs"], each["load"]["num_tokens"])
        for each in states
    ]
    return counted == [(0, 0)] * 2 and held == [(0, 0, 0)] * 2
