"""Nodes that lose Ray, join again, are drained, and hold a service that is deployed again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.cluster.conftest import started
from tests.cluster.machines import Machine
from tests.cluster.ray_cluster import RAYLET, RayCluster
from tests.cluster.traffic import Traffic
from tests.support.deadlines import wait_until

BEFORE_S = 3.0
"""Traffic before something happens."""
WAIT_S = 40.0
"""The longest wait of a request, as where a node is lost without a word."""
MOVED_S = 180.0
"""Within this after its node began to go, each replica has another one, on two busy cores."""


@pytest.fixture
def new_cluster(cluster_model: str) -> Iterator[Callable[[int], RayCluster]]:
    """Starts a cluster with so many machines to spare."""
    with ExitStack() as stack:
        yield lambda num_spare: stack.enter_context(started(cluster_model, num_spare))


def nodes(cluster: RayCluster, machine: Machine) -> list[str]:
    """The addresses of the nodes of the ranks that answer, as that machine's ingress has them."""
    states = cluster.get("/server_info", machine).json()["internal_states"]
    return sorted(state["node_ip"] for state in states if "node_ip" in state)


@pytest.mark.slow
def test_a_killed_raylet_costs_no_request_of_the_others_and_its_node_can_join_again(
    new_cluster: Callable[[int], RayCluster],
) -> None:
    cluster = new_cluster(0)
    lost, left = cluster.workers
    traffic = Traffic(cluster.url(left))
    with traffic.from_machine(cluster.client):
        time.sleep(BEFORE_S)
        cluster.kill(lost, RAYLET)
        time.sleep(25.0)
        cluster.rejoin(0)
        time.sleep(10.0)
    print(f"\n{traffic.summary()}")
    assert not traffic.failures
    assert not traffic.waiting(WAIT_S)
    cluster.wait_until_settled(left, MOVED_S)
    assert nodes(cluster, left) == sorted(machine.address for machine in cluster.workers)


@pytest.mark.slow
def test_a_drained_node_hands_its_requests_over_to_a_spare_one(
    new_cluster: Callable[[int], RayCluster],
) -> None:
    cluster = new_cluster(1)
    used = nodes(cluster, cluster.workers[0])
    drained = next(machine for machine in cluster.workers if machine.address in used)
    left = next(machine for machine in cluster.workers if machine is not drained and machine.address in used)
    others = sorted(machine.address for machine in cluster.workers if machine is not drained)
    traffic = Traffic(cluster.url(left))
    with traffic.from_machine(cluster.client):
        time.sleep(BEFORE_S)
        cluster.drain(drained)
        wait_until(
            lambda: nodes(cluster, left) == others, lambda: nodes(cluster, left), MOVED_S, interval_s=1.0
        )
        time.sleep(BEFORE_S)
        drained.power_off()
        time.sleep(BEFORE_S)
    print(f"\n{traffic.summary()}")
    assert not traffic.failures
    assert not traffic.waiting(WAIT_S)
    cluster.wait_until_settled(left, MOVED_S)


@pytest.mark.slow
def test_a_redeploy_fails_no_request_and_leaves_one_of_each_kind_on_every_node(
    new_cluster: Callable[[int], RayCluster],
) -> None:
    cluster = new_cluster(0)
    traffic = Traffic(*map(cluster.url, cluster.workers))
    with traffic.from_machine(cluster.client):
        time.sleep(BEFORE_S)
        cluster.deploy({"routing": {"remembered_decisions": 100}, "engine": {"cache": {"num_blocks": 300}}})
        time.sleep(BEFORE_S)
    print(f"\n{traffic.summary()}")
    assert not traffic.failures
    assert not traffic.waiting(WAIT_S)
    for machine in cluster.workers:
        cluster.wait_until_settled(machine, MOVED_S)
        for deployment in ("DPRank", "Router", "Ingress"):
            assert len(machine.pids(f"ray::ServeReplica:kvbeacon:{deployment}")) == 1
