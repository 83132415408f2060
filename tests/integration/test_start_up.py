"""A configuration that can't work is refused: at once by `python -m app.check`, in its log by `serve run`."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import app.check
from tests.support.deadlines import wait_until
from tests.support.free_ports import find_free_ports
from tests.support.graph.serve_config import REPO, Json, kv_events, serve_config, with_args
from tests.support.graph.serve_graph import START_S, ServeGraph


@pytest.fixture
def config(tiny_model: str) -> Json:
    return serve_config({"/": {"model": {"path": tiny_model}}})


@pytest.fixture
def taken_port() -> Iterator[int]:
    """The first of 12 consecutive ports, of which the second is taken and the others are free."""
    port = find_free_ports(12)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port + 1))
        listener.listen()
        yield port


def events_on(port: int, **changes: Any) -> Json:
    endpoints = {
        "endpoint": f"tcp://127.0.0.1:{port}",
        "replay_endpoint": f"tcp://127.0.0.1:{port + 4}",
    }
    return {"kv_events_config": json.dumps(kv_events(2) | endpoints | changes)}


def preflight(file: Path) -> subprocess.CompletedProcess[str]:
    """`python -m app.check FILE`."""
    command = [sys.executable, "-m", "app.check", str(file)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)


@pytest.fixture
def complaint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Json | str], str]:
    """The one message with which the preflight refuses a file with this content."""

    def check(content: Json | str) -> str:
        file = written(tmp_path, content)
        status = app.check.main([str(file)])
        printed = capsys.readouterr()
        assert status == 1, printed.err
        assert printed.out == ""
        assert printed.err.startswith(f"{file}: ")
        return printed.err

    return check


def written(folder: Path, content: Json | str) -> Path:
    file = folder / "serve_config.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def test_a_good_file_passes(tmp_path: Path, config: Json) -> None:
    result = preflight(written(tmp_path, config))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dp_sizes": 2}, ["args.dp_sizes", "unknown key", "dp_size"]),
        ({"engine": {"cache": {"block_sise": 16}}}, ["args.engine.cache.block_sise", "block_size"]),
        ({"engine": {"cache": {"block_size": 0}}}, ["args.engine.cache.block_size = 0"]),
        ({"dp_size": "two"}, ["args.dp_size = 'two'"]),
        (events_on(21_000, topics="kv"), ["kv_events_config.topics", "unknown key", "topic"]),
        (
            events_on(21_000, replay_endpoint="tcp://127.0.0.1:21001"),
            ["21001..21002", "21000..21001", "overlap"],
        ),
        ({"model": {"path": "/no/such/model"}}, ["/no/such/model"]),
        ({"model": {"max_model_len": 8193}}, ["model.max_model_len = 8193", "2 to 8192"]),
    ],
)
def test_the_preflight_names_the_setting(
    complaint: Callable[[Json], str], config: Json, changes: Json, named: list[str]
) -> None:
    message = complaint(with_args(config, changes))
    assert [part for part in named if part not in message] == [], message


def test_the_preflight_names_a_taken_event_port_and_its_rank(
    complaint: Callable[[Json], str], config: Json, taken_port: int
) -> None:
    message = complaint(with_args(config, events_on(taken_port)))
    assert f"127.0.0.1:{taken_port + 1}" in message
    assert "rank 1" in message


def test_the_preflight_names_a_taken_http_port(
    complaint: Callable[[Json], str], config: Json, taken_port: int
) -> None:
    taken = config | {"http_options": config["http_options"] | {"port": taken_port + 1}}
    assert f"127.0.0.1:{taken_port + 1}" in complaint(taken)


def test_the_preflight_of_a_redeploy_leaves_the_ports_to_the_service_that_runs(
    tmp_path: Path, config: Json, taken_port: int
) -> None:
    file = written(tmp_path, with_args(config, events_on(taken_port)))
    assert app.check.main(["--redeploy", str(file)]) == 0
    file = written(tmp_path, with_args(config, {"model": {"path": "/no/such/model"}}))
    assert app.check.main(["--redeploy", str(file)]) == 1


def test_the_preflight_refuses_an_option_of_serves_that_a_setting_decides(
    complaint: Callable[[Json], str], config: Json
) -> None:
    (application,) = config["applications"]
    overridden = application | {"deployments": [{"name": "DPRank", "num_replicas": 3}]}
    message = complaint(config | {"applications": [overridden]})
    assert "deployments.DPRank.num_replicas = 3: set args.dp_size instead" in message


def test_the_preflight_names_two_parts_that_need_one_port(
    complaint: Callable[[Json], str], config: Json
) -> None:
    port = find_free_ports(12)
    http = config | {"http_options": config["http_options"] | {"port": port + 1}}
    message = complaint(with_args(http, events_on(port)))
    assert f"port {port + 1}: HTTP and rank 1 both need it" in message


def test_the_preflight_refuses_a_model_that_the_engine_does_not_have(
    complaint: Callable[[Json], str], config: Json, new_tiny_llama: Callable[..., Path], tiny_model: str
) -> None:
    folder = new_tiny_llama(architectures=["GPT2LMHeadModel"])
    shutil.copy(Path(tiny_model) / "tokenizer.json", folder)
    assert "GPT2LMHeadModel" in complaint(with_args(config, {"model": {"path": str(folder)}}))


def test_the_preflight_says_why_no_router_could_follow(
    tmp_path: Path, config: Json, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path, with_args(config, {"kv_events_config": "{endpoint"}))
    assert app.check.main([str(file)]) == 0
    assert "is not JSON" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "*", "lo"])
def test_the_preflight_takes_port_0_interfaces_and_a_mapping(
    tmp_path: Path, config: Json, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    for port in (0, find_free_ports(12)):
        events = {"publisher": "zmq", "endpoint": f"tcp://{host}:{port}", "topic": "kv", "made_by": "x"}
        file = written(tmp_path, with_args(config, {"kv_events_config": events}))
        assert app.check.main([str(file)]) == 0
    assert caplog.text.count("kv_events_config.made_by: unknown key, ignored") == 2


def test_the_preflight_says_where_the_ranks_python_is_not_here(
    tmp_path: Path, config: Json, caplog: pytest.LogCaptureFixture
) -> None:
    for python in (tmp_path / "none", tmp_path, sys.executable):
        file = written(tmp_path, with_args(config, {"resources": {"python": str(python)}}))
        assert app.check.main([str(file)]) == 0
    assert caplog.text.count("can't be run here: the ranks' machines need it") == 2


def test_the_preflight_refuses_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "serve_config.yaml"
    file.write_bytes(b"applications: [] # caf\xe9")
    assert app.check.main([str(file)]) == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("applications:\n  - name: [", "line 2"),
        ("applications: 5", "applications"),
        ("- a", "the file"),
        ("aplications: []", "aplications"),
        ("", "the file"),
    ],
)
def test_the_preflight_names_what_is_malformed_in_the_file(
    complaint: Callable[[str], str], text: str, named: str
) -> None:
    assert named in complaint(text)


def test_the_command_says_what_is_missing_and_exits_with_1(tmp_path: Path) -> None:
    result = preflight(tmp_path / "none.yaml")
    assert result.returncode == 1
    assert "none.yaml" in result.stderr
    assert "Traceback" not in result.stderr


def test_serve_run_names_a_taken_event_port_and_its_rank(config: Json, taken_port: int) -> None:
    message = (
        f"DPRank can't start: rank 1 can't bind tcp://127.0.0.1:{taken_port + 1}: in use by another process"
    )
    assert_fails_with(message, with_args(config, events_on(taken_port)))


def test_serve_run_names_an_unknown_key(config: Json) -> None:
    assert_fails_with("args.dp_sizes: unknown key", with_args(config, {"dp_sizes": 2}))


def test_serve_run_refuses_a_malformed_file(config: Json) -> None:
    graph = ServeGraph(config, file_text="applications:\n  - name: [")
    graph.start()
    try:
        wait_until(lambda: graph.has_ended, "the end of serve run", START_S)
        assert "line 2" in graph.output()
    finally:
        graph.stop()


def assert_fails_with(message: str, config: Json) -> None:
    """The graph's output says `message`, and nothing is served."""
    graph = ServeGraph(config)
    graph.start()
    try:
        wait_until(lambda: message in graph.output() or graph.has_ended, message, START_S)
        assert message in graph.output()
        assert not graph.is_ready
    finally:
        graph.stop()
