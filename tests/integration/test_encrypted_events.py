"""A graph that encrypts its events: its own router follows, and who has no key reads nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.auth import create_certificates, load_certificate

from tests.integration.conftest import Graphs
from tests.integration.serve_graph import ServeGraph, kv_events, wait_for


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


def subscribe(context: zmq.Context[Any], address: str, keys: tuple[bytes, bytes, bytes] | None) -> Any:
    """A SUB at `address`, with own public, own secret and server's public key if it has keys."""
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.LINGER, 0)
    sub.subscribe(b"")
    if keys is not None:
        sub.curve_publickey, sub.curve_secretkey, sub.curve_serverkey = keys
    sub.connect(address)
    return sub


def test_the_router_follows_and_nobody_without_a_key_hears_anything(graph: ServeGraph, keys: Path) -> None:
    rank_key, _ = load_certificate(keys / "rank.key")
    descriptor = graph.get("/server_info")["kv_events"]
    assert descriptor["curve_public_key"] == rank_key.decode()
    assert graph.router_rank(0)["trust"] == "exact"
    graph.complete(list(range(100, 200)))
    graph.wait_until_followed()

    address = f"tcp://127.0.0.1:{descriptor['endpoint_port_base']}"
    allowed, stranger = (
        (*load_certificate(keys / f"{name}.key_secret"), rank_key) for name in ("router", "stranger")
    )
    with zmq.Context() as context:
        plain, unknown, known = (subscribe(context, address, each) for each in (None, stranger, allowed))
        refused = wait_for(lambda: graph.get("/server_info")["publishers"][0]["refused_clients"], "refused")
        assert refused >= 1
        prompts = iter(range(1000, 40_000, 100))
        deadline = time.monotonic() + 20
        while not known.poll(50):
            assert time.monotonic() < deadline, "the allowed client hears nothing"
            first = next(prompts)
            graph.complete(list(range(first, first + 100)))
        assert not plain.poll(0)
        assert not unknown.poll(0)
        for sub in (plain, unknown, known):
            sub.close()
    assert "client refused by rank 0 at tcp://127.0.0.1:" in graph.output()
    for name in ("rank", "router"):
        _, secret = load_certificate(keys / f"{name}.key_secret")
        assert secret.decode() not in graph.output() + json.dumps(graph.get("/server_info"))
