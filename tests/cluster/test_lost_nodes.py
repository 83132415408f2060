"""Nodes that vanish, are cut off for long, and come back: what the requests of the others wait."""

from __future__ import annotations

import time

import pytest

from tests.cluster.ray_cluster import RayCluster
from tests.cluster.traffic import Traffic

BEFORE_S = 3.0
"""Traffic before a node is lost."""
REPLACED_S = 120.0
"""Within this after a machine has joined, all of its replicas are followed."""
LOST_NODE_WAIT_S = 40.0
"""The longest wait of a request whose rank's node is lost without a word. Routers miss the rank's answers and
load reports long before; at the latest Ray declares the node dead (some 35 s), and breaks the calls there."""


def test_a_node_that_vanishes_costs_no_request_of_the_others_and_can_be_replaced(cluster: RayCluster) -> None:
    lost, left = cluster.workers
    traffic = Traffic(cluster.url(left))
    with traffic.from_machine(cluster.client):
        time.sleep(BEFORE_S)
        lost.power_off()
        time.sleep(25.0)
        cluster.replace_worker(0)
    print(f"\n{traffic.summary()}")
    assert not traffic.failures
    assert not traffic.waiting(LOST_NODE_WAIT_S)
    cluster.wait_until_settled(left, REPLACED_S)


@pytest.mark.slow
def test_a_long_cut_costs_no_request_of_the_other_side(own_cluster: RayCluster) -> None:
    cut_off, left = own_cluster.workers
    traffic = Traffic(own_cluster.url(left))
    with traffic.from_machine(own_cluster.client):
        time.sleep(BEFORE_S)
        with own_cluster.switch.failing(cut_off=(cut_off.address,)):
            time.sleep(40.0)
        time.sleep(20.0)
    print(f"\n{traffic.summary()}")
    assert not traffic.failures
    assert not traffic.waiting(LOST_NODE_WAIT_S)
    # Ray has declared the node dead, and its raylet ends once it hears of that.
    own_cluster.replace_worker(0)
    own_cluster.wait_until_settled(left, REPLACED_S)


@pytest.mark.slow
def test_the_workers_serve_for_a_while_without_the_head(own_cluster: RayCluster) -> None:
    """Without its control store, Ray ends every raylet, and all replicas with it, after a minute."""
    _, left = own_cluster.workers
    traffic = Traffic(own_cluster.url(left))
    with traffic.from_machine(own_cluster.client):
        time.sleep(BEFORE_S)
        own_cluster.head.power_off()
        time.sleep(20.0)
    print(f"\n{traffic.summary()}")
    assert not traffic.failures
