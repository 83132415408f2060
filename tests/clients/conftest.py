"""Clients that were written for other servers, in an environment of their own: `make test-clients`.

The tests and the graph run in the project's environment; a client is a program of the other one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_graph import ServeGraph

CLIENT_TIMEOUT_S = 300.0
BIN = Path(os.environ.get("KVBEACON_CLIENTS", "no-clients")) / "bin"
"""Where the clients' programs are; `make test-clients` says it."""

collect_ignore_glob = [] if BIN.is_dir() else ["test_*.py"]

RunClient = Callable[..., str]


def pytest_report_header() -> str:
    return "tests/clients: " + ("clients are here" if BIN.is_dir() else "left out: `make test-clients`")


@pytest.fixture(scope="session")
def graphs() -> Iterator[Graphs]:
    graphs = Graphs()
    yield graphs
    graphs.stop()


@pytest.fixture
def smollm2_graph(graphs: Graphs, smollm2_dir: Path) -> ServeGraph:
    """Two ranks of the default model, in the number format whose answers are the same on every CPU."""
    return graphs.get({"/": {"model": {"dtype": "float32"}}})


@pytest.fixture
def run_client(tmp_path: Path) -> RunClient:
    """Runs a program of the clients' environment in an empty folder; what it has written."""

    def run(program: str, *arguments: str, **environment: Any) -> str:
        own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [str(BIN / program), *arguments],
            cwd=tmp_path,
            env={**own, "HOME": str(tmp_path), **environment},
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
