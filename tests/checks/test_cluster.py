"""What is asked of a cluster's nodes, without a cluster: nodes are what Ray says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from app.checks import cluster
from app.checks.cluster import check_cluster
from app.checks.plan import Plan, make_plan
from app.errors import InsufficientMemoryError


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The nodes of a cluster, none at first; this process is on the first."""
    nodes: list[dict[str, Any]] = []

    class Context:
        def get_node_id(self) -> str:
            return "node-0"

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(cluster, "log_with_ray", lambda: None)
    return nodes


def node(**resources: float) -> dict[str, Any]:
    return {"NodeID": "node-0", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": resources}


def plan(folder: Path, **args: Any) -> Plan:
    """Ranks with one CPU each, of which a machine's memory holds some, but not a million."""
    return make_plan({"model": {"path": str(folder)}, "resources": {"num_cpus": 1}, **args})


def test_a_cluster_without_a_node_for_ranks_refuses_nothing(
    nodes: list[dict[str, Any]], tiny_llama_dir: Path
) -> None:
    check_cluster(plan(tiny_llama_dir, dp_size=4))
    nodes.append(node(CPU=0.0))
    check_cluster(plan(tiny_llama_dir, dp_size=4))


def test_memory_must_hold_the_ranks_that_ray_would_place_there(
    nodes: list[dict[str, Any]], tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "check_for_rank", lambda plan: 2)
    monkeypatch.setattr(cluster, "check_for_control", lambda plan: None)
    nodes.append(node(CPU=8.0))
    check_cluster(plan(tiny_llama_dir, dp_size=2))
    with pytest.raises(InsufficientMemoryError, match=r"dp_size = 4: the memory of all nodes holds 2 ranks"):
        check_cluster(plan(tiny_llama_dir, dp_size=4))


@pytest.mark.parametrize(
    ("resources", "cpus"), [({"num_cpus": 4}, 8.0), ({"num_cpus": 1, "max_ranks_per_node": 2}, 8.0)]
)
def test_ranks_that_wait_for_nodes_to_be_added_need_no_memory_here(
    nodes: list[dict[str, Any]],
    tiny_llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, Any],
    cpus: float,
) -> None:
    monkeypatch.setattr(cluster, "check_for_rank", lambda plan: 2)
    monkeypatch.setattr(cluster, "check_for_control", lambda plan: None)
    nodes.append(node(CPU=cpus))
    check_cluster(plan(tiny_llama_dir, dp_size=4, resources=resources))
