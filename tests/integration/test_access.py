"""Keys, limits, deadlines and slow clients of a whole graph, behind Ray's proxy and real sockets."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.deadlines import wait_until
from tests.support.graph.exchanges import new_prompt, refused
from tests.support.graph.graphs import Graphs
from tests.support.graph.serve_config import REPO, merged, tiny_args
from tests.support.graph.serve_graph import ServeGraph

CLIENT, LIMITED, ADMIN = "sk-client-0123456789", "sk-limited-0123456789", "sk-admin-0123456789"
BODY_TIMEOUT_S = 6
NUM_SLOW = 100
TEXT: Any = {"prompt": "Hello", "max_tokens": 1}
LONG: Any = {"prompt": "Hello", "max_tokens": 4000, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    write(folder / "clients", {"client": CLIENT, "limited": LIMITED}, "concurrent_requests: 1")
    write(folder / "admins", {"admin": ADMIN})
    (folder / "admin_key").write_text(ADMIN)
    return folder


def write(path: Path, keys: dict[str, str], limits: str = "") -> None:
    lines = [
        f"  - {{name: {name}, key: {key}, {limits if name == 'limited' else ''}}}"
        for name, key in keys.items()
    ]
    path.write_text("\n".join(["keys:", *lines]))
    path.chmod(0o600)


@pytest.fixture
def graph(graphs: Graphs, tiny_model: str, folder: Path) -> ServeGraph:
    access = {
        "keys_file": str(folder / "clients"),
        "admin_keys_file": str(folder / "admins"),
        "server_info_needs_key": False,
    }
    changes = {"ingress": {"access": access, "body_timeout_s": BODY_TIMEOUT_S}}
    return graphs.get({"/": merged(tiny_args(tiny_model), changes)}, api_key=ADMIN)


@pytest.fixture
def http(graph: ServeGraph) -> Iterator[httpx.Client]:
    """A client without a key."""
    with httpx.Client(base_url=graph.url, timeout=60) as client:
        yield client


def bearing(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_keys(graph: ServeGraph, http: httpx.Client, folder: Path) -> None:
    refused(http.post("/v1/completions", json=TEXT), 401, code="invalid_api_key")
    refused(http.post("/v1/completions", json=TEXT, headers=bearing("sk-another")), 401)
    for headers in (bearing(CLIENT), {"x-api-key": CLIENT}, bearing(ADMIN)):
        assert http.post("/v1/completions", json=TEXT, headers=headers).status_code == 200
    refused(http.get("/router/ranks", headers=bearing(CLIENT)), 403, code="not_allowed")
    assert http.get("/router/ranks", headers=bearing(ADMIN)).status_code == 200
    assert http.post("/flush_cache").status_code == 401
    info = http.get("/server_info").text
    assert str(folder) in info
    output = graph.output()
    for key in (CLIENT, LIMITED, ADMIN):
        assert key not in info
        assert key not in output
    command = [sys.executable, "-m", "app.misses", graph.url, "--key-file", str(folder / "admin_key")]
    assert "requests" in subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout


def test_keys_change_while_the_service_runs(graph: ServeGraph, http: httpx.Client, folder: Path) -> None:
    new = "sk-new-0123456789abc"
    write(folder / "clients", {"client": CLIENT, "limited": LIMITED, "new": new}, "concurrent_requests: 1")

    def is_known() -> bool:
        return http.get("/v1/models", headers=bearing(new)).status_code == 200

    wait_until(is_known, "the new key is known")


def test_a_stream_that_disconnects_gives_its_place_back(graph: ServeGraph, http: httpx.Client) -> None:
    long = LONG | {"stream": True}
    with http.stream("POST", "/v1/completions", json=long, headers=bearing(LIMITED)) as stream:
        parts = stream.iter_raw()  # the stream is closed with it
        assert (stream.status_code, next(parts)[:6]) == (200, b"data: ")
        refusal = http.post("/v1/completions", json=TEXT, headers=bearing(LIMITED))
        assert "concurrent_requests = 1" in refused(refusal, 429, code="rate_limit_exceeded")
        assert refusal.headers["retry-after"] == "1"

    def is_let_in() -> bool:
        return http.post("/v1/completions", json=TEXT, headers=bearing(LIMITED)).status_code == 200

    wait_until(is_let_in, "the place is free again")


def test_a_requests_time(graph: ServeGraph, http: httpx.Client) -> None:
    headers = bearing(CLIENT) | {"x-kvbeacon-timeout-s": "1.5"}
    whole = http.post("/v1/completions", json=LONG, headers=headers)
    assert "x-kvbeacon-timeout-s = 1.5 s" in refused(whole, 504, code="deadline_exceeded")
    headers["x-kvbeacon-timeout-s"] = "4"
    with http.stream("POST", "/v1/completions", json=LONG | {"stream": True}, headers=headers) as stream:
        events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert stream.status_code == 200
    assert len(events) > 1
    assert json.loads(events[-1])["error"]["code"] == "deadline_exceeded"

    def is_idle() -> bool:
        ranks = http.get("/v1/loads", headers=bearing(CLIENT)).json()["loads"]
        return all(rank["num_running_reqs"] == rank["num_waiting_reqs"] == 0 for rank in ranks)

    wait_until(is_idle, "the ranks' work is cancelled")


def test_the_clients_id_is_in_its_answer_and_its_receipt(graph: ServeGraph, http: httpx.Client) -> None:
    headers = bearing(ADMIN) | {"x-request-id": "trace-17"}
    answer = http.post("/v1/completions", json={"prompt": new_prompt(), "max_tokens": 1}, headers=headers)
    assert answer.headers["x-request-id"] == "trace-17"
    answer_id = answer.json()["id"]
    assert answer_id.startswith("cmpl-trace-17-")
    receipt = http.get(f"/router/decisions/{answer_id}", headers=bearing(ADMIN))
    assert receipt.json()["request_id"] == answer_id.removeprefix("cmpl-")


def head(key: str, length: int) -> bytes:
    lines = (
        "POST /v1/completions HTTP/1.1",
        "Host: a",
        f"Authorization: Bearer {key}",
        f"Content-Length: {length}",
    )
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.fixture
def slow_clients(graph: ServeGraph) -> Iterator[list[socket.socket]]:
    """Clients whose bodies never end."""
    where = urlsplit(graph.url)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection((where.hostname, where.port), timeout=60))
            for _ in range(NUM_SLOW)
        ]
        for client in clients:
            client.sendall(head(CLIENT, 1000) + b"{")
        yield clients


def test_slow_bodies_are_cut_off_and_others_are_served_meanwhile(
    http: httpx.Client, slow_clients: list[socket.socket]
) -> None:
    began = time.monotonic()
    answers = dict.fromkeys(slow_clients, b"")
    waiting = set(slow_clients)
    while waiting:
        assert time.monotonic() < began + 60, f"{len(waiting)} clients are still connected"
        served = http.post("/v1/completions", json=TEXT, headers=bearing(CLIENT))
        assert served.status_code == 200, served.text
        for client in select.select(list(waiting), (), (), 1.0)[0]:
            part = b""
            with contextlib.suppress(ConnectionResetError):
                part = client.recv(65536)
            answers[client] += part
            if not part:
                waiting.remove(client)
        for client in waiting:  # a trickle doesn't prolong it
            with contextlib.suppress(OSError):
                client.send(b" ")
    for answer in answers.values():
        assert answer.startswith(b"HTTP/1.1 408"), answer
        assert b"ingress.body_timeout_s" in answer
