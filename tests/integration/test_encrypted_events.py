"""A graph that encrypts its events: its own router follows, and a client without a key reads nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.auth import create_certificates, load_certificate

from tests.support.deadlines import wait_until
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import REPO, kv_events
from tests.support.graph.serve_graph import ServeGraph


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As docs/operations.md says to make them."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "clients").mkdir()
    for name in ("rank", "router", "stranger"):
        create_certificates(folder, name)
        (folder / f"{name}.key_secret").chmod(0o600)
    (folder / "router.key").rename(folder / "clients" / "router.key")
    return folder


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str, keys: Path) -> Iterator[ServeGraph]:
    curve = {
        "secret_key_file": str(keys / "rank.key_secret"),
        "allowed_clients": str(keys / "clients"),
        "router_key_file": str(keys / "router.key_secret"),
    }
    events = json.dumps(kv_events(1) | {"curve": curve})
    args = {"model": {"path": tiny_model}, "dp_size": 1, "kv_events_config": events}
    yield graphs.get({"/": args})
    graphs.stop()


@pytest.fixture
def follow(keys: Path, tmp_path: Path) -> Iterator[Callable[[str], Callable[[], str]]]:
    """Starts the example with the router's key; returns a function that reads what it has printed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(url: str) -> Callable[[], str]:
        output = tmp_path / "output"
        example, key = REPO / "examples" / "follow_events.py", keys / "router.key_secret"
        command = [sys.executable, str(example), url, str(key)]
        with output.open("wb") as file:
            started.append(subprocess.Popen(command, stdout=file))
        return output.read_text

    yield start
    for process in started:
        process.terminate()
        process.wait()


def subscribe(context: zmq.Context[Any], address: str, keys: tuple[bytes, bytes, bytes] | None) -> Any:
    """A SUB at `address`, with these keys, if any: own public, own secret, the server's public one."""
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.LINGER, 0)
    sub.subscribe(b"")
    if keys is not None:
        sub.curve_publickey, sub.curve_secretkey, sub.curve_serverkey = keys
    sub.connect(address)
    return sub


def test_the_router_follows_and_no_client_without_a_key_receives_anything(
    graph: ServeGraph, keys: Path, follow: Callable[[str], Callable[[], str]]
) -> None:
    rank_key, _ = load_certificate(keys / "rank.key")
    descriptor = graph.get("/server_info")["kv_events"]
    assert descriptor["curve_public_key"] == rank_key.decode()
    known = graph.router_rank(0)
    assert known is not None
    assert known["trust"] == "exact"
    graph.complete(list(range(100, 200)))
    graph.wait_until_followed()

    address = f"tcp://127.0.0.1:{descriptor['endpoint_port_base']}"
    public, secret = load_certificate(keys / "stranger.key_secret")
    assert secret is not None
    stranger = (public, secret, rank_key)
    printed = follow(graph.url)
    with zmq.Context() as context:
        plain, unknown = (subscribe(context, address, each) for each in (None, stranger))
        refused = wait_until(lambda: graph.get("/server_info")["publishers"][0]["refused_clients"], "refused")
        assert refused >= 1
        prompts = iter(range(1000, 40_000, 100))

        def complete_and_read() -> str:
            first = next(prompts)
            graph.complete(list(range(first, first + 100)))
            return printed()

        assert wait_until(complete_and_read, "the allowed client receives something").startswith(
            "rank 0  seq"
        )
        assert not plain.poll(0)
        assert not unknown.poll(0)
        for sub in (plain, unknown):
            sub.close()
    assert "client refused by rank 0 at tcp://127.0.0.1:" in graph.output()
    for name in ("rank", "router"):
        _, secret = load_certificate(keys / f"{name}.key_secret")
        assert secret is not None
        assert secret.decode() not in graph.output() + json.dumps(graph.get("/server_info"))
