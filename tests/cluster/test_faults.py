"""Faults of the network and of Ray under traffic: no request fails, and audits are equal afterwards.

Every test prints one line with what its requests waited.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.machines import Machine
from tests.cluster.ray_cluster import ZMQ_PORTS, RayCluster
from tests.cluster.traffic import Traffic
from tests.support.deadlines import wait_until
from tests.support.graph.serve_config import REPO, Json

BEFORE_S, AFTER_S = 2.0, 3.0
"""Traffic before and after a fault."""
SETTLED_S = 60.0
"""Within this after a fault every router knows every rank's cache again."""
NORMAL_WAIT_S = 10.0
"""The longest wait without a fault that holds requests up, on two busy cores."""


def test_each_worker_has_a_rank_a_router_and_an_ingress_which_asks_the_router_beside_it(
    cluster: RayCluster,
) -> None:
    states = cluster.get("/server_info", cluster.workers[0]).json()["internal_states"]
    addresses = {machine.address for machine in cluster.workers}
    assert {state["node_ip"] for state in states} == addresses

    answers = [named_routers(cluster, machine) for machine in cluster.workers for _ in range(5)]
    assert all(len(routers) == 1 for routers in answers), answers
    first, second = set.union(*answers[:5]), set.union(*answers[5:])
    assert (len(first), len(second)) == (1, 1), "each ingress asks one router only"
    assert first != second, "and not the same one"
    health = [cluster.get("/health", machine).json() for machine in cluster.workers]
    assert [{each["router"] for each in answer["routers"]} for answer in health] == [first | second] * 2


def named_routers(cluster: RayCluster, machine: Machine) -> set[str]:
    """The routers that an answer of `/router/ranks` names."""
    return {rank["router"] for rank in cluster.get("/router/ranks", machine).json()}


def test_an_outside_consumer_follows_the_ranks_of_every_node(cluster: RayCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "examples/follow_events.py", cluster.url(cluster.workers[0])]
    entered = cluster.client.start(command, {**os.environ, "PYTHONPATH": str(REPO)}, log)
    first = [f"rank {rank}  seq      0" for rank in range(2)]
    try:
        wait_until(lambda: all(line in log.read_text() for line in first), log.read_text, 60)
    finally:
        for pid in cluster.client.pids(" ".join(command)):
            os.kill(pid, signal.SIGTERM)
        entered.wait(20)


@pytest.mark.parametrize(
    ("faults", "seconds"),
    [
        ({"blocked_ports": tuple(base + rank for base in ZMQ_PORTS.values() for rank in range(2))}, 8.0),
        ({"loss": 0.05, "delay_s": 0.05}, 8.0),
    ],
    ids=["ZMQ ports blocked", "5% loss and 50 ms delay"],
)
def test_a_bad_network_only_slows_requests(cluster: RayCluster, faults: Json, seconds: float) -> None:
    traffic = under_traffic(cluster, *cluster.workers, faults=faults, seconds=seconds)
    assert not traffic.failures
    assert not traffic.waiting(NORMAL_WAIT_S)
    cluster.wait_until_settled(cluster.workers[0], SETTLED_S)


def test_a_short_cut_costs_no_request_of_the_other_side(cluster: RayCluster) -> None:
    cut_off, left = cluster.workers
    traffic = under_traffic(cluster, left, faults={"cut_off": (cut_off.address,)}, seconds=5.0)
    assert not traffic.failures
    assert not traffic.waiting(5.0 + NORMAL_WAIT_S)
    for machine in cluster.workers:
        cluster.wait_until_settled(machine, SETTLED_S)


def test_the_controllers_death_is_not_noticed(cluster: RayCluster) -> None:
    traffic = Traffic(*map(cluster.url, cluster.workers))
    with traffic.from_machine(cluster.client):
        time.sleep(BEFORE_S)
        cluster.kill(cluster.head, "ray::ServeController")
        time.sleep(6.0)
    print(f"\n{traffic.summary()}")
    assert not traffic.failures
    assert not traffic.waiting(NORMAL_WAIT_S)
    cluster.wait_until_settled(cluster.workers[0], SETTLED_S)


def under_traffic(cluster: RayCluster, *entries: Machine, faults: Json, seconds: float) -> Traffic:
    """Traffic at these machines' proxies while the network has `faults` for some seconds."""
    traffic = Traffic(*map(cluster.url, entries))
    with traffic.from_machine(cluster.client):
        time.sleep(BEFORE_S)
        with cluster.switch.failing(**faults):
            time.sleep(seconds)
        time.sleep(AFTER_S)
    print(f"\n{traffic.summary()}")
    return traffic
