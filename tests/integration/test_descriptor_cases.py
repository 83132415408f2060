"""Every case in which nothing can be followed, and the hosts that stand verbatim, through HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app import __version__
from app.config import load_config
from app.events.descriptor import read_descriptor
from tests.integration.conftest import Graphs
from tests.support.free_ports import find_free_ports
from tests.support.graph.serve_graph import Json, ServeGraph, merged, serve_config, wait_for

MISCONFIGURED = "KV events are misconfigured"
ENDPOINT = "tcp://127.0.0.1:5557"
MALFORMED = f'{{"publisher": "zmq", "endpoint": "{ENDPOINT}"'
LIST = '["zmq"]'

# Nobody wants to publish: nothing to complain of.
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
    "port 0": ("tcp://127.0.0.1:0", "needs the ports 0..0; allowed are 1..65535"),
    "port -1": ("tcp://127.0.0.1:-1", "needs the ports -1..-1; allowed are 1..65535"),
    "port 65536": ("tcp://127.0.0.1:65536", "needs the ports 65536..65536; allowed are 1..65535"),
    "port 1000000": ("tcp://127.0.0.1:1000000", "needs the ports 1000000..1000000; allowed are 1..65535"),
    "an empty host": ("tcp://:5557", "the host is empty"),
    "a bare IPv6 address": ("tcp://::1:5557", "an IPv6 address needs brackets"),
}
# The config, and what the log says of it.
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


@dataclass(frozen=True)
class Answer:
    """What the server said when its application had these `args`."""

    args: Json
    status: int
    info: Json
    alias: Json


class ReconfiguredGraph(ServeGraph):
    """One application whose settings are changed through Serve's REST API while it runs."""

    def __init__(self, config: Json) -> None:
        super().__init__(config)
        self._num_blocks = config["applications"][0]["args"]["engine"]["cache"]["num_blocks"]

    def ask(self, kv_events_config: str | None) -> Answer:
        """What `/server_info` says once rank and ingress have this `kv_events_config`."""
        # A number that only these settings have: where it is seen, they are in force.
        self._num_blocks += 1
        changes = {
            "kv_events_config": kv_events_config,
            "engine": {"cache": {"num_blocks": self._num_blocks}},
        }
        args = merged(self.config["applications"][0]["args"], changes)
        self.deploy(args)
        wait_for(self._is_in_force, f"{kv_events_config!r} in force")
        response = self.http.get("/server_info")
        return Answer(args, response.status_code, response.json(), self.get("/get_server_info"))

    def deploy(self, args: Json, *more: Json) -> None:
        """Give `args` to the application's deployments, and start the applications `more` beside it."""
        (application,) = self.config["applications"]
        deployments = [{"name": name, "user_config": args} for name in ("DPRank", "Ingress")]
        applications = [{**application, "deployments": deployments}, *more]
        dashboard = re.search("View the dashboard at .*?(http://[0-9.:]+)", self.output())
        assert dashboard, self.output()
        response = httpx.put(
            f"{dashboard[1]}/api/serve/applications/",
            json={**self.config, "applications": applications},
            headers={"Authorization": f"Bearer {self._auth['RAY_AUTH_TOKEN']}"},
            timeout=30,
        )
        assert response.status_code == 200, response.text

    def misconfigurations(self) -> list[str]:
        """The lines of the log that say that KV events are misconfigured."""
        return [line for line in self.output().splitlines() if MISCONFIGURED in line]

    def _is_in_force(self) -> bool:
        info = self.get("/server_info")
        in_rank = info["internal_states"][0].get("num_blocks")
        return {info["engine"]["cache"]["num_blocks"], in_rank} == {self._num_blocks}


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
def graph(graphs: Graphs, tiniest_model: str) -> Iterator[ReconfiguredGraph]:
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
    config["applications"][0]["import_path"] = "tests.support.graph.reconfigured_graph:build"
    graph = ReconfiguredGraph(config)
    graph.start()
    try:
        graph.wait_until_ready()
        yield graph
    finally:
        graph.stop()


@pytest.fixture(scope="module")
def null_answers(graph: ReconfiguredGraph) -> dict[str, Answer]:
    return {case: graph.ask(config) for case, config in NULL.items()}


def check_everything_else(answer: Answer) -> None:
    """The descriptor's key, every setting, the raw config, the rank's state and the version are there."""
    settings = load_config(answer.args).model_dump(mode="json")
    assert answer.status == 200
    assert "kv_events" in answer.info
    assert {key: answer.info[key] for key in settings} == settings
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
def test_a_wildcard_host_stands_verbatim(graph: ReconfiguredGraph, host: str) -> None:
    base = find_free_ports(3)
    config = {
        "publisher": "zmq",
        "endpoint": f"tcp://{host}:{base}",
        "replay_endpoint": f"tcp://{host}:{base + 2}",
        "topic": "kv",
    }
    answer = graph.ask(json.dumps(config))
    check_everything_else(answer)
    assert answer.info["kv_events"] == {
        "publisher": "zmq",
        "endpoint_host": host,
        "endpoint_port_base": base,
        "topic": "kv",
        "block_size": 16,
        "dp_size": 1,
        "replay_endpoint_port_base": base + 2,
        "load_endpoint_port_base": base + 1,
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


def test_each_misconfiguration_is_told_once_as_a_warning_with_the_rule_that_it_breaks(
    graph: ReconfiguredGraph, null_answers: dict[str, Answer]
) -> None:
    wait_for(lambda: len(graph.misconfigurations()) >= len(BROKEN), "the log's last lines")
    lines = graph.misconfigurations()
    for _, told in BROKEN.values():
        (line,) = [line for line in lines if told in line]
        assert " WARNING " in line
    assert len(lines) == len(BROKEN)


def test_without_a_positive_block_size_there_is_no_application(graph: ReconfiguredGraph) -> None:
    """The one null case of SGLang's that the settings leave no room for."""
    (application,) = graph.config["applications"]
    args = merged(application["args"], {"engine": {"cache": {"block_size": 0}}})
    refused = {
        "name": "refused",
        "route_prefix": "/refused",
        "import_path": "app.build:build_app",
        "args": args,
    }
    graph.deploy(application["args"], refused)
    # Ray tries a few times; the first says it all.
    fault = "ConfigError: args.engine.cache.block_size = 0: Input should be greater than or equal to 1"
    wait_for(lambda: fault in graph.output(), "the refusal")
    assert graph.http.get("/refused/server_info").status_code == 404
    assert graph.get("/server_info")["kv_events"] is None
