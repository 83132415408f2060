"""Every case in which no router can follow, and hosts that are advertised verbatim: through HTTP."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app import __version__
from app.config import load_config
from app.events.descriptor import read_descriptor
from tests.support.deadlines import wait_until
from tests.support.free_ports import find_free_ports
from tests.support.graph.graphs import Graphs
from tests.support.graph.reconfigurable_graph import Answer, ReconfigurableGraph
from tests.support.graph.serve_config import merged, serve_config

ENDPOINT = "tcp://127.0.0.1:5557"
MALFORMED = f'{{"publisher": "zmq", "endpoint": "{ENDPOINT}"'
LIST = '["zmq"]'

# Publishing is not configured: that is no fault.
SILENT: dict[str, str | None] = {
    "no config": None,
    "publisher unset": json.dumps({"endpoint": ENDPOINT}),
    'publisher "null"': json.dumps({"publisher": "null", "endpoint": ENDPOINT}),
    "publisher null": json.dumps({"publisher": None, "endpoint": ENDPOINT}),
}
NO_PORT = "the port is missing or not an integer"
# The endpoint, and the rule that it breaks.
ENDPOINTS = {
    "inproc": ("inproc://events", "only tcp can be advertised"),
    "ipc": ("ipc:///tmp/kvbeacon-without-descriptor", "only tcp can be advertised"),
    "no port": ("tcp://127.0.0.1", NO_PORT),
    "an empty port": ("tcp://127.0.0.1:", NO_PORT),
    "a port that is no integer": ("tcp://127.0.0.1:http", NO_PORT),
    "port -1": ("tcp://127.0.0.1:-1", "needs the ports -1..-1; allowed are 0..65535"),
    "port 65536": ("tcp://127.0.0.1:65536", "needs the ports 65536..65536; allowed are 0..65535"),
    "port 1000000": ("tcp://127.0.0.1:1000000", "needs the ports 1000000..1000000; allowed are 0..65535"),
    "an empty host": ("tcp://:5557", "the host is empty"),
    "a bare IPv6 address": ("tcp://::1:5557", "an IPv6 address needs brackets"),
}
# The config, and what the log has about it.
BROKEN = {
    "malformed JSON": (MALFORMED, f"kv_events_config = {MALFORMED!r} is not JSON"),
    "JSON, but no object": (LIST, f"kv_events_config = {LIST!r} is not a JSON object"),
} | {
    case: (
        json.dumps({"publisher": "zmq", "endpoint": endpoint, "topic": "kv"}),
        f"kv_events_config.endpoint = {endpoint!r}: {rule}",
    )
    for case, (endpoint, rule) in ENDPOINTS.items()
}
NULL = SILENT | {case: config for case, (config, _) in BROKEN.items()}
VERBATIM_HOSTS = ["0.0.0.0", "*", "[::]"]


@pytest.fixture(scope="module")
def tiniest_model(new_tiny_llama: Callable[..., Path]) -> str:
    """One layer, and a tokenizer with a token per byte: constructed in no time."""
    folder = new_tiny_llama(vocab_size=256, num_hidden_layers=1)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture(scope="module")
def graph(graphs: Graphs, tiniest_model: str) -> Iterator[ReconfigurableGraph]:
    graphs.stop()
    config = serve_config(
        {
            "/": {
                "model": {"path": tiniest_model},
                "dp_size": 1,
                "engine": {"cache": {"num_blocks": 16}},
                "kv_events_config": None,
            }
        }
    )
    config["applications"][0]["import_path"] = "tests.support.graph.reconfigurable_app:build"
    graph = ReconfigurableGraph(config)
    graph.start()
    try:
        graph.wait_until_ready()
        yield graph
    finally:
        graph.stop()


@pytest.fixture(scope="module")
def null_answers(graph: ReconfigurableGraph) -> dict[str, Answer]:
    return {case: graph.answer_with(config) for case, config in NULL.items()}


def check_everything_else(answer: Answer) -> None:
    """The descriptor's key, every setting, the raw config, the rank's state and the version are there."""
    settings = load_config(answer.args).model_dump(mode="json")
    assert answer.status == 200
    assert "kv_events" in answer.info
    assert answer.info["config"] == settings
    assert answer.info["kv_events_config"] == answer.args["kv_events_config"]
    assert [(state["dp_rank"], state["state"]) for state in answer.info["internal_states"]] == [(0, "ready")]
    assert answer.info["version"] == __version__
    assert answer.alias == answer.info


@pytest.mark.parametrize("case", NULL)
def test_the_descriptor_is_null_and_everything_else_is_there(
    null_answers: dict[str, Answer], case: str
) -> None:
    answer = null_answers[case]
    check_everything_else(answer)
    assert answer.info["kv_events"] is None
    assert [publisher["state"] for publisher in answer.info["publishers"]] == ["disabled"]
    assert answer.info.keys() == null_answers["no config"].info.keys()


@pytest.mark.parametrize("host", VERBATIM_HOSTS)
def test_a_wildcard_host_is_advertised_verbatim(graph: ReconfigurableGraph, host: str) -> None:
    base = find_free_ports(6)
    config = {
        "publisher": "zmq",
        "endpoint": f"tcp://{host}:{base}",
        "replay_endpoint": f"tcp://{host}:{base + 2}",
        "topic": "kv",
    }
    answer = graph.answer_with(json.dumps(config))
    check_everything_else(answer)
    assert answer.info["kv_events"] == {
        "publisher": "zmq",
        "endpoint_host": host,
        "endpoint_port_base": base,
        "topic": "kv",
        "block_size": 16,
        "dp_size": 1,
        "replay_endpoint_port_base": base + 2,
        "load_endpoint_port_base": base + 4,
        "load_topic": "load",
    }
    (publisher,) = answer.info["publishers"]
    (described,) = read_descriptor(answer.info["kv_events"], publisher["host"])
    assert publisher["state"] == "publishing"
    for key in (
        "rank",
        "host",
        "event_port",
        "replay_port",
        "load_port",
        "topic",
        "load_topic",
        "block_size",
    ):
        assert publisher[key] == getattr(described, key)


@pytest.mark.parametrize("as_mapping", [False, True])
def test_ports_that_the_system_chooses_are_in_publishers(
    graph: ReconfigurableGraph, as_mapping: bool
) -> None:
    events = {"publisher": "zmq", "endpoint": "tcp://127.0.0.1:0", "replay_endpoint": "tcp://127.0.0.1:0"}
    config = events if as_mapping else json.dumps(events)
    answer = graph.answer_with(config)
    check_everything_else(answer)
    assert answer.info["kv_events"] is None
    (publisher,) = answer.info["publishers"]
    assert publisher["state"] == "publishing"
    ports = {publisher[key] for key in ("event_port", "replay_port", "load_port")}
    assert len(ports) == 3
    for port in ports:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    explained = [line for line in graph.output().splitlines() if "the system chooses the ports" in line]
    assert explained
    assert " WARNING " in explained[0]


def test_each_misconfiguration_is_logged_once_as_a_warning_with_the_rule_that_it_breaks(
    graph: ReconfigurableGraph, null_answers: dict[str, Answer]
) -> None:
    wait_until(lambda: len(graph.misconfigurations()) >= len(BROKEN), "the log's last lines")
    lines = graph.misconfigurations()
    for _, expected in BROKEN.values():
        (line,) = [line for line in lines if expected in line]
        assert " WARNING " in line
    assert len(lines) == len(BROKEN)


def test_without_a_positive_block_size_there_is_no_application(graph: ReconfigurableGraph) -> None:
    """The only null case of SGLang's that the settings make impossible."""
    (application,) = graph.config["applications"]
    args = merged(application["args"], {"engine": {"cache": {"block_size": 0}}})
    refused = {
        "name": "refused",
        "route_prefix": "/refused",
        "import_path": "app.build:build_app",
        "args": args,
    }
    graph.deploy(application["args"], refused)
    fault = "args.engine.cache.block_size = 0: Input should be greater than or equal to 1"
    wait_until(lambda: fault in graph.output(), "the refusal")
    assert graph.http.get("/refused/server_info").status_code == 404
    assert graph.get("/server_info")["kv_events"] is None
