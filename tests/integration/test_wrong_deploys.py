"""A deploy that can't work is refused, in a sentence, while the service that runs goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.deadlines import wait_until
from tests.support.graph.exchanges import new_prompt
from tests.support.graph.serve_config import Json, kv_events, with_args
from tests.support.graph.serve_graph import START_S, ServeGraph

BUILD_S = 90
"""Seconds within which a deploy is refused: the build runs in a new process."""


def with_curve(folder: Path) -> str:
    """A `kv_events_config` whose key files are in `folder`."""
    curve = {"secret_key_file": f"{folder}/rank.key_secret", "allowed_clients": f"{folder}/clients"}
    return json.dumps(kv_events(2) | {"curve": curve})


def wrong_deploys(folder: Path) -> dict[str, Json]:
    """What the refusal begins with → the changes that it refuses."""
    return {
        f"model.path = '{folder}/mistyped': no such folder": {"model": {"path": f"{folder}/mistyped"}},
        "args.routing.policy = 'fastest': Input should be 'predicted_ttft', ": {
            "routing": {"policy": "fastest"}
        },
        "engine.cache.num_blocks = 100000000: the blocks need ": {
            "engine": {"cache": {"num_blocks": 100_000_000}}
        },
        "model.max_model_len = 9000: the model allows 2 to 8192": {"model": {"max_model_len": 9000}},
        f"kv_events_config.curve.secret_key_file = '{folder}/rank.key_secret': ": {
            "kv_events_config": with_curve(folder)
        },
        "resources.python = '/no/python': no such program": {"resources": {"python": "/no/python"}},
    }


@pytest.mark.slow
def test_the_service_goes_on_while_wrong_deploys_are_refused(
    new_tiny_graph: ServeGraph, tmp_path: Path
) -> None:
    graph = new_tiny_graph
    before = [graph.pids(name) for name in ("DPRank", "Router", "Ingress")]
    with requests_to(graph) as statuses:
        for refusal, changes in wrong_deploys(tmp_path).items():
            graph.apply(with_args(graph.config, changes))
            wait_until(lambda: refusal in graph.status()["message"], refusal, BUILD_S)  # noqa: B023
            assert_says_no_more_than(graph.status(), refusal)
    assert set(statuses) == {200}
    assert [graph.pids(name) for name in ("DPRank", "Router", "Ingress")] == before

    graph.redeploy({"ingress": {"max_request_bytes": 50_000}})
    wait_until(lambda: graph.status()["status"] == "RUNNING", "the right one runs", START_S)
    assert graph.get("/server_info")["config"]["ingress"]["max_request_bytes"] == 50_000


def assert_says_no_more_than(status: Json, refusal: str) -> None:
    """The message is Ray's line and then ours, which begins with `refusal`."""
    assert status["status"] == "DEPLOY_FAILED"
    rays, ours = status["message"].splitlines()
    assert rays == "Deploying app 'kvbeacon' failed with exception:"
    assert ours.startswith(refusal)


@contextmanager
def requests_to(graph: ServeGraph) -> Iterator[list[int]]:
    """One request after the other until the block ends; their statuses."""
    statuses: list[int] = []
    is_over = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=graph.url, timeout=60) as http:
            while not is_over.is_set():
                body = {"prompt": new_prompt(), "max_tokens": 16}
                statuses.append(http.post("/v1/completions", json=body).status_code)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield statuses
    finally:
        is_over.set()
        sender.join(60)
    assert not sender.is_alive()
    assert len(statuses) > 1
