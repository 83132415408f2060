"""Ranks in a Python of their own, beside routers and ingresses in ours."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_graph import ServeGraph


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """An environment with our packages in a folder with a space: a copy, so that a process shows its path."""
    folder = tmp_path / "another environment"
    subprocess.run([sys.executable, "-m", "venv", "--copies", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = sysconfig.get_paths()["purelib"]
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    return folder / "bin" / "python"


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str, other_python: Path) -> Iterator[ServeGraph]:
    args = {"model": {"path": tiny_model}, "dp_size": 1, "resources": {"python": str(other_python)}}
    yield graphs.get({"/": args})
    graphs.stop()


def test_only_the_ranks_run_in_it(graph: ServeGraph, other_python: Path) -> None:
    (rank,) = graph.pids("DPRank")
    assert executable(rank) == other_python
    for deployment in ("Router", "Ingress"):
        assert executable(graph.pids(deployment)[0]) == Path(sys.executable).resolve()
    graph.complete(list(range(100, 200)))
    graph.wait_until_followed()
    assert graph.audit()


def executable(pid: int) -> Path:
    return Path(os.readlink(f"/proc/{pid}/exe"))
