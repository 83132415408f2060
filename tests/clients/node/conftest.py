"""Clients from npm, in a folder of their own: `make test-node-clients`. They talk to this machine only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.graph.scripted_app import CHAT_TEMPLATE
from tests.support.graph.serve_config import serve_config
from tests.support.graph.serve_graph import ServeGraph

CLIENT_TIMEOUT_S = 120.0
MODULES = Path(os.environ.get("KVBEACON_NODE_CLIENTS", "no-clients")) / "node_modules"
"""Where the clients are; `make test-node-clients` says it."""
CONTEXT = 65_536
NO_PROXY = "127.0.0.1"

collect_ignore_glob = [] if MODULES.is_dir() else ["test_*.py"]


@pytest.fixture(scope="session")
def scripted_model(new_tiny_llama: Callable[..., Path], smollm2_dir: Path) -> Path:
    """A model's folder, with the default tokenizer and a template for tools; a test writes the script."""
    folder = new_tiny_llama(vocab_size=49152, hidden_size=32, max_position_embeddings=CONTEXT)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_dir / name, folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def scripted_graph(scripted_model: Path) -> Iterator[ServeGraph]:
    """Two ranks that play the script which is in the model's folder at the time of a request."""
    model = {"path": str(scripted_model), "served_name": "scripted", "max_model_len": CONTEXT}
    config = serve_config({"/": {"model": model}})
    config["applications"][0]["import_path"] = "tests.support.graph.scripted_app:build"
    graph = ServeGraph(config)
    graph.start()
    graph.wait_until_ready()
    yield graph
    graph.stop()


@pytest.fixture
def run_client(tmp_path: Path) -> Callable[..., str]:
    """Runs a client's program, or another one, in `cwd`, with a home of its own; what it has written."""

    def run(program: str, *arguments: str, cwd: Path, **environment: str) -> str:
        own = MODULES / ".bin" / program
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        local = {
            **nowhere,
            "NO_PROXY": NO_PROXY,
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "NODE_PATH": str(MODULES),
        }
        done = subprocess.run(
            [str(own if own.exists() else program), *arguments],
            cwd=cwd,
            env={**local, **{name.lower(): value for name, value in nowhere.items()}, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
