"""smg and sglang-router in front of a whole graph, where they are installed: on the PATH.

Tried with smg 1.13.0 and sglang-router 0.3.2; they can't share an environment.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.deadlines import wait_until
from tests.support.free_ports import find_free_ports
from tests.support.graph.serve_graph import ServeGraph

START_S = 60
CHAT = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, "temperature": 0}


@pytest.fixture(params=["smg", "sglang-router"])
def executable(request: pytest.FixtureRequest) -> str:
    """The router's command."""
    found: str | None = shutil.which(request.param)
    if found is None:
        pytest.skip(f"{request.param} isn't installed")
    return found


@pytest.fixture
def router(executable: str, tiny_graph: ServeGraph, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the router, which addresses each rank by itself."""
    port, log = find_free_ports(2), tmp_path / "log"
    options = {"--host": "127.0.0.1", "--port": str(port), "--prometheus-port": str(port + 1)}
    options |= {"--worker-urls": tiny_graph.url, "--policy": "round_robin"}
    command = [executable, "launch", "--dp-aware", *(word for option in options.items() for word in option)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until(lambda: len(workers(client)) == 2, lambda: end_of(log), START_S, interval_s=0.2)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def workers(client: httpx.Client) -> list[Any]:
    try:
        return list(client.get("/workers").json()["workers"])
    except (httpx.HTTPError, ValueError, KeyError):
        return []


def end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def test_it_reads_our_server_info_and_serves_on_the_ranks_that_it_chooses(
    tiny_graph: ServeGraph, router: httpx.Client
) -> None:
    found = workers(router)
    assert sorted(each["url"] for each in found) == [f"{tiny_graph.url}@0", f"{tiny_graph.url}@1"]
    assert {each["model_id"] for each in found} == {"tiny"}
    ranks = set()
    for _ in range(4):
        answer = router.post("/v1/chat/completions", json={"model": "tiny", **CHAT})
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] > 0
        ranks.add(answer.headers["x-dp-rank"])
    assert ranks == {"0", "1"}
    text = router.post("/v1/completions", json={"model": "tiny", "prompt": "Hello", "max_tokens": 4})
    assert text.status_code == 200, text.text
    with router.stream(
        "POST", "/v1/chat/completions", json={"model": "tiny", **CHAT, "stream": True}
    ) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert stream.status_code == 200, lines
    assert lines[-1] == "data: [DONE]"
