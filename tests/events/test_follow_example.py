"""`examples/follow_events.py` against real ranks: a consumer that knows nothing but the server's URL."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
ServeInfo = Callable[..., str]
"""Serves a `kv_events` at `/server_info`, with other keys or in place of the whole; returns the URL."""


@pytest.fixture
def server_info() -> Iterator[ServeInfo]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(kv_events: Any, *, whole: bytes | None = None, **keys: Any) -> str:
        answer = json.dumps({"kv_events": kv_events, **keys}).encode() if whole is None else whole

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/server_info" else 404)
                self.end_headers()
                self.wfile.write(answer)

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


@contextmanager
def reading(example: subprocess.Popen[str]) -> Iterator[list[str]]:
    """The lines that `example` has printed so far, each space single; ended with the context."""
    assert example.stdout is not None
    lines: list[str] = []
    readline = example.stdout.readline
    reader = threading.Thread(
        target=lambda: lines.extend(" ".join(line.split()) for line in iter(readline, ""))
    )
    reader.start()
    try:
        with example:
            try:
                yield lines
            finally:
                example.terminate()
    finally:
        reader.join()


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
    with reading(start_example(server_info(descriptor | key), *key_file)) as lines:
        # The rank is silent since the example came.
        wait_until(lambda: len(lines) >= 3, lambda: f"what came before: {lines}", 30)
        for number in range(10, 30):
            rank.step(stored(number))
        wait_until(lambda: len(lines) >= 23, lambda: f"what comes: {lines}", 30)
    assert lines[:4] == [
        "rank 0 seq 0 +0 -0 blocks",
        "rank 0 seq 1 +3 -0 blocks",
        "rank 0 seq 2 +0 -1 blocks",
        "rank 0 seq 3 +1 -0 blocks",
    ]
    assert [line.split()[3] for line in lines] == [str(seq) for seq in range(23)]


def test_the_example_follows_each_rank_where_it_is(make_rank: MakeRank, server_info: ServeInfo) -> None:
    ranks = [
        make_rank(
            {"dp_rank": number, "dp_size": 2},
            endpoint="tcp://127.0.0.1:0",
            replay_endpoint="tcp://127.0.0.1:0",
        )
        for number in range(2)
    ]
    publishers = [rank.info.as_json() for rank in ranks] + [{"rank": 2, "state": "unreachable"}]
    # The descriptor has one host for all ranks: here one at which there are none.
    elsewhere = DESCRIPTOR | {"endpoint_host": "127.0.0.2", "dp_size": 3}
    for kv_events in (None, elsewhere):
        example = start_example(server_info(kv_events, publishers=publishers))
        with reading(example) as lines:
            wait_until(lambda: len(lines) >= 2, "the first batch of each rank", 30)
            assert example.stderr is not None
            assert example.stderr.readline() == "rank 2 isn't followed: unreachable\n"
        assert sorted(lines) == [f"rank {rank} seq 0 +0 -0 blocks" for rank in range(2)]


def test_the_example_says_that_it_may_not_see_all_ranks(make_rank: MakeRank, server_info: ServeInfo) -> None:
    base = find_free_ports(6)
    config = {"endpoint": f"tcp://*:{base}", "replay_endpoint": f"tcp://*:{base + 2}"}
    make_rank(**config)
    descriptor = parse(json.dumps({"publisher": "zmq", **config}), 1, 1).descriptor
    url = server_info(descriptor)
    example = start_example(url)
    with reading(example) as lines:
        wait_until(lambda: lines, "the first batch", 30)
        assert example.stderr is not None
        said = example.stderr.readline()
    assert said == (
        f"{url} has no list of publishers: all ranks are expected at 127.0.0.1, others would not be seen\n"
    )


def test_the_example_says_what_it_can_not_get_any_more(make_rank: MakeRank, server_info: ServeInfo) -> None:
    base = find_free_ports(6)
    config = {"endpoint": f"tcp://*:{base}", "replay_endpoint": f"tcp://*:{base + 2}"}
    rank = make_rank(**config, buffer_steps=2)
    for number in range(5):
        rank.step(stored(number))
    # The last batch is in the buffer once it was published.
    wait_until(lambda: rank.publisher.counters.published_batches == 6, "all published")
    descriptor = parse(json.dumps({"publisher": "zmq", **config}), 1, 1).descriptor
    with reading(start_example(server_info(descriptor))) as lines:
        wait_until(lambda: len(lines) >= 3, lambda: f"what is left: {lines}", 30)
    assert lines[:2] == ["rank 0 seq 0..3 are lost", "rank 0 seq 4 +1 -0 blocks"]


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


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8000", "'127.0.0.1:8000' is no URL of a server; one is http://"),
        ("localhost", "is no URL of a server"),
        ("", "is no URL of a server"),
        ("http://", "is no URL of a server"),
        ("http://[::", "is no URL of a server"),
        ("http://127.0.0.1:http", "is no URL of a server"),
        ("ftp://127.0.0.1:21", "is no URL of a server"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1/server_info: [Errno"),
    ],
)
def test_the_example_says_what_is_wrong_with_a_url(url: str, said: str) -> None:
    with start_example(url) as example:
        _, errors = example.communicate(timeout=30)
    assert (example.returncode, "Traceback" in errors) == (1, False)
    assert said in errors


@pytest.mark.parametrize(
    ("whole", "path", "said"),
    [
        (b"<html>", "", "isn't JSON"),
        (b"[]", "", "has no kv_events"),
        (b"{}", "", "has no kv_events"),
        (b"{}", "/v2", "404"),
    ],
)
def test_the_example_says_what_is_wrong_with_an_answer(
    server_info: ServeInfo, whole: bytes, path: str, said: str
) -> None:
    with start_example(server_info(None, whole=whole) + path) as example:
        _, errors = example.communicate(timeout=30)
    assert (example.returncode, "Traceback" in errors) == (1, False)
    assert said in errors


def test_the_example_says_what_is_wrong_with_a_key_file(server_info: ServeInfo) -> None:
    with start_example(server_info(DESCRIPTOR), "/no/such/file") as example:
        _, errors = example.communicate(timeout=30)
    assert (example.returncode, "Traceback" in errors) == (1, False)
    assert "/no/such/file" in errors
