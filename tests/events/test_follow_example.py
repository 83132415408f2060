"""`examples/follow_events.py` against real ranks: a consumer that knows nothing but the server's URL."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.events.endpoints import parse
from tests.events.fuzz_inputs import DESCRIPTOR
from tests.support.deadlines import wait_until
from tests.support.events.blocks import removed, stored
from tests.support.events.curve_keys import Keys
from tests.support.events.ranks import MakeRank
from tests.support.free_ports import find_free_ports

REPO = Path(__file__).resolve().parents[2]
ServeInfo = Callable[[Any], str]
"""Serves a `kv_events` at `/server_info`; returns the URL."""


@pytest.fixture
def server_info() -> Iterator[ServeInfo]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(kv_events: Any) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/server_info" else 404)
                self.end_headers()
                self.wfile.write(json.dumps({"kv_events": kv_events}).encode())

            def log_message(self, *args: Any) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def start_example(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "examples/follow_events.py", *arguments],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("framing", "encrypts"), [("topic", False), ("plain", False), ("topic", True)], ids=str
)
def test_the_example_prints_what_it_missed_and_what_comes(
    make_rank: MakeRank,
    server_info: ServeInfo,
    keys: Keys,
    framing: str,
    encrypts: bool,
) -> None:
    base = find_free_ports(6)
    config = {
        "endpoint": f"tcp://*:{base}",
        "replay_endpoint": f"tcp://*:{base + 2}",
        "replay_framing": framing,
        "curve": keys.config if encrypts else None,
    }
    rank = make_rank(**config)
    rank.step(stored(1, 2, 3))
    rank.step(removed(2))
    descriptor = parse(json.dumps({"publisher": "zmq", **config}), 1, 1).descriptor
    assert descriptor is not None
    key = {"curve_public_key": rank.address.curve_public_key} if encrypts else {}
    key_file = [str(keys.router_file)] if encrypts else []
    with start_example(server_info(descriptor | key), *key_file) as example:
        assert example.stdout is not None
        lines: list[str] = []
        readline = example.stdout.readline
        reader = threading.Thread(target=lambda: lines.extend(iter(readline, "")))
        reader.start()

        def prints() -> bool:
            """A subscription takes effect in its own time: until a batch is received, there are more."""
            has_ended = not reader.is_alive()
            if lines:
                return True
            assert not has_ended, "the example ended and printed nothing"
            rank.step(stored(4))
            return False

        try:
            wait_until(prints, "the example prints a line", 30, interval_s=0.05)
        finally:
            example.terminate()
            reader.join()
    seen = [" ".join(line.split()) for line in lines]
    assert seen[:3] == [
        "rank 0 seq 0 +0 -0 blocks",
        "rank 0 seq 1 +3 -0 blocks",
        "rank 0 seq 2 +0 -1 blocks",
    ]
    assert [line.split()[3] for line in seen] == [str(seq) for seq in range(len(seen))]


@pytest.mark.parametrize(
    ("kv_events", "said"),
    [
        (None, "describes no KV events"),
        (DESCRIPTOR | {"dp_size": 0}, "kv_events.dp_size = 0; allowed are"),
        (DESCRIPTOR, "encrypts: name the secret key file"),
    ],
)
def test_the_example_says_why_there_is_nothing_to_follow(
    server_info: ServeInfo, kv_events: Any, said: str
) -> None:
    with start_example(server_info(kv_events)) as example:
        _, errors = example.communicate(timeout=30)
    assert example.returncode == 1
    assert said in errors
