"""From the raw config string to the descriptor and to what each rank opens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigError
from app.events.config import KvEventsConfig
from app.events.endpoints import parse, rank_endpoints
from app.events.ports import dial_host


def raw(**keys: Any) -> str:
    return json.dumps({"publisher": "zmq", **keys})


def config(**keys: Any) -> KvEventsConfig:
    return KvEventsConfig(publisher="zmq", **keys)


def test_the_descriptor_has_exactly_the_contracts_keys() -> None:
    described = parse(raw(endpoint="tcp://*:5557", topic="kv", load_reports=False), 64, 2)
    assert described.descriptor == {
        "publisher": "zmq",
        "endpoint_host": "*",
        "endpoint_port_base": 5557,
        "topic": "kv",
        "block_size": 64,
        "dp_size": 2,
    }
    assert (described.reason, described.misconfigured) == ("", False)


def test_replay_and_load_are_described_when_they_apply() -> None:
    descriptor = parse(raw(replay_endpoint="tcp://*:5600", load_topic="l"), 64, 2).descriptor
    assert descriptor is not None
    assert descriptor["replay_endpoint_port_base"] == 5600
    assert descriptor["load_endpoint_port_base"] == 5643
    assert descriptor["load_topic"] == "l"


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::]", "127.0.0.1", "localhost", "10.0.0.5", "[fe80::1]"])
def test_host_and_topic_are_verbatim(host: str) -> None:
    descriptor = parse(raw(endpoint=f"tcp://{host}:1", topic="kv @é"), 16, 1).descriptor
    assert descriptor is not None
    assert (descriptor["endpoint_host"], descriptor["topic"]) == (host, "kv @é")


@pytest.mark.parametrize("given", [None, "{}", '{"publisher": "null"}', '{"publisher": null}'])
def test_no_publisher_is_no_misconfiguration(given: str | None) -> None:
    described = parse(given, 16, 2)
    assert (described.config, described.descriptor, described.misconfigured) == (None, None, False)
    assert described.reason


NULL_ENDPOINTS = [
    "inproc://events",
    "ipc:///tmp/events",
    "udp://127.0.0.1:5557",
    "127.0.0.1:5557",
    "",
    "tcp://",
    "tcp://127.0.0.1",
    "tcp://127.0.0.1:",
    "tcp://[::]",
    "tcp://*:http",
    "tcp://*:5557.0",
    "tcp://*:5_557",
    "tcp://*:5557/",
    "tcp://*:-1",
    "tcp://*:65536",
    "tcp://*:1000000",
    "tcp://*:" + "9" * 5000,
    "tcp://:5557",
    "tcp:// :5557",
    "tcp://::1:5557",
    "tcp://:::5557",
    "tcp://[]:5557",
    "tcp://[nonsense]:5557",
]


@pytest.mark.parametrize("endpoint", NULL_ENDPOINTS)
def test_a_misconfigured_endpoint_gives_null_and_a_reason(endpoint: str) -> None:
    described = parse(raw(endpoint=endpoint), 16, 1)
    assert described.descriptor is None
    assert described.misconfigured
    assert repr(endpoint) in described.reason


@pytest.mark.parametrize("given", ["", "{", "nonsense", "[]", '"zmq"', "null", "1", "[" * 100_000])
def test_malformed_json_gives_null_and_a_reason(given: str) -> None:
    described = parse(given, 16, 1)
    assert (described.config, described.descriptor, described.misconfigured) == (None, None, True)
    assert "JSON" in described.reason


@pytest.mark.parametrize("block_size", [None, 0, -1])
def test_no_block_size_gives_null_and_a_reason(block_size: int | None) -> None:
    described = parse(raw(), block_size, 1)
    assert (described.config, described.descriptor, described.misconfigured) == (None, None, True)
    assert "block size" in described.reason


@pytest.mark.parametrize(("dp_size", "fits"), [(1, True), (2, False)])
def test_the_last_ranks_port_must_exist_too(dp_size: int, fits: bool) -> None:
    assert (parse(raw(endpoint="tcp://*:65535"), 16, dp_size).descriptor is not None) == fits


def test_a_misconfigured_replay_endpoint_gives_null_and_a_reason() -> None:
    described = parse(raw(replay_endpoint="tcp://*"), 16, 1)
    assert described.descriptor is None
    assert "kv_events_config.replay_endpoint = 'tcp://*'" in described.reason


@given(st.text())
def test_whatever_the_endpoint_nothing_is_raised(endpoint: str) -> None:
    described = parse(raw(endpoint=endpoint), 16, 2)
    assert described.descriptor is not None or described.reason


def test_a_misspelt_key_is_named_with_what_was_meant() -> None:
    with pytest.raises(
        ConfigError, match=r"kv_events_config\.endpiont: unknown key; did you mean 'endpoint'"
    ):
        parse(raw(endpiont="tcp://*:5557"), 16, 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("publisher", "kafka"),
        ("endpoint", 5557),
        ("hwm", "many"),
        ("hwm", True),
        ("hwm", None),
        ("topic", 5),
        ("bind", 1),
        ("enable_kv_cache_events", "perhaps"),
        ("load_publish_endpoint", 6000),
        ("buffer_steps", 0),
        ("max_queue_size", 1.5),
        ("hwm", 2**31),
        ("buffer_steps", 2**70),
        ("load_reports", "perhaps"),
        ("load_topic", "ack"),
        ("load_topic", ""),
        ("bind", "both"),
        ("format", "json"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"kv_events_config\.{key} = {value!r}"):
        parse(raw(**{key: value}), 16, 2)


def test_a_topic_that_can_not_be_sent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kv_events_config\.topic .* surrogates not allowed"):
        parse(raw(topic="\ud800"), 16, 2)


@pytest.mark.parametrize(("events", "replay"), [(5557, 5558), (5558, 5557), (5557, 5557)])
def test_overlapping_ranges_are_refused_by_name(events: int, replay: int) -> None:
    given = raw(endpoint=f"tcp://*:{events}", replay_endpoint=f"tcp://*:{replay}")
    with pytest.raises(
        ConfigError, match=rf"{replay}\.\.{replay + 1} overlap the event ports {events}\.\.{events + 1}"
    ):
        parse(given, 16, 2)


@pytest.mark.parametrize(
    ("events", "replay", "load"),
    [
        (5557, None, 6581),  # 1,024 behind the events
        (5557, 5600, 5643),  # as far behind the replay as that is behind the events
        (5557, 5560, 5563),
        (5600, 5557, 5643),
        (5557, 9000, 12_443),
        (5557, 40_000, 6581),  # that far there are no ports: 1,024 behind one of them
        (65_533, 5557, 6581),
        (1, 65_533, 1025),
        (63_488, None, 64_512),
        (63_489, None, None),  # the system chooses
        (65_530, 65_520, None),
    ],
)
def test_load_ports_are_one_more_distance_on(events: int, replay: int | None, load: int | None) -> None:
    keys = {"replay_endpoint": f"tcp://*:{replay}"} if replay else {}
    descriptor = parse(raw(endpoint=f"tcp://*:{events}", **keys), 16, 3).descriptor
    assert descriptor is not None
    assert descriptor.get("load_endpoint_port_base") == load
    assert ("load_topic" in descriptor) == (load is not None)


@given(st.integers(1, 65_535), st.integers(1, 65_535), st.integers(1, 1024))
def test_what_ranks_open_is_what_is_described_and_no_port_is_used_twice(
    events: int, replay: int, dp_size: int
) -> None:
    given = raw(endpoint=f"tcp://*:{events}", replay_endpoint=f"tcp://*:{replay}")
    try:
        described = parse(given, 16, dp_size)
    except ConfigError:
        assert abs(events - replay) < dp_size
        return
    if described.config is None:
        assert max(events, replay) + dp_size - 1 > 65_535
        return
    assert described.descriptor is not None
    used: set[int] = set()
    for rank in {0, dp_size - 1}:
        opened = rank_endpoints(described.config, rank, dp_size)
        assert opened.replay is not None
        ports = {
            described.descriptor["endpoint_port_base"] + rank: opened.events,
            described.descriptor["replay_endpoint_port_base"] + rank: opened.replay,
        }
        assert (opened.load is None) == ("load_endpoint_port_base" not in described.descriptor)
        if opened.load is not None:
            ports[described.descriptor["load_endpoint_port_base"] + rank] = opened.load
        for port, endpoint in ports.items():
            assert 1 <= port <= 65_535
            assert (endpoint.address, endpoint.port) == (f"tcp://*:{port}", port)
        assert not used & set(ports)
        used |= set(ports)


@pytest.mark.parametrize(
    ("endpoint", "bind", "binds"),
    [
        ("tcp://*:5557", "auto", True),
        ("tcp://0.0.0.0:5557", "auto", True),
        ("tcp://[::]:5557", "auto", True),
        ("tcp://[0:0::0]:5557", "auto", True),
        ("tcp://127.0.0.1:5557", "auto", True),
        ("tcp://127.8.8.8:5557", "auto", True),
        ("tcp://[::1]:5557", "auto", True),
        ("tcp://localhost:5557", "auto", True),
        ("inproc://x", "auto", True),
        ("ipc:///tmp/x", "auto", True),
        ("tcp://10.0.0.5:5557", "auto", False),
        ("tcp://collector:5557", "auto", False),
        ("tcp://10.0.0.5:5557", "bind", True),
        ("tcp://127.0.0.1:5557", "connect", False),
        ("tcp://eth0:5557", "auto", True),
        ("tcp://lo:5557", "auto", True),
        ("ipc:///tmp/x", "connect", False),
    ],
)
def test_which_end_binds(endpoint: str, bind: Any, binds: bool) -> None:
    assert rank_endpoints(config(endpoint=endpoint, bind=bind), 0, 1).events.binds == binds


def test_replay_always_binds() -> None:
    opened = rank_endpoints(
        config(endpoint="tcp://collector:5557", replay_endpoint="tcp://10.0.0.5:6000"), 1, 2
    )
    assert opened.replay is not None
    assert (opened.replay.address, opened.replay.binds) == ("tcp://10.0.0.5:6001", True)


def test_connecting_ranks_are_described_with_a_warning() -> None:
    described = parse(raw(endpoint="tcp://10.0.0.5:5557"), 16, 2)
    assert described.descriptor is not None
    assert described.misconfigured
    assert '"bind": "bind"' in described.reason


def test_inproc_leaves_rank_0_bare_and_has_no_load_socket() -> None:
    described = parse(raw(endpoint="inproc://events", replay_endpoint="inproc://replay"), 16, 2)
    assert described.config is not None
    first = rank_endpoints(described.config, 0, 2)
    assert first.replay is not None
    assert (first.events.address, first.replay.address) == ("inproc://events", "inproc://replay")
    opened = rank_endpoints(described.config, 1, 2)
    assert opened.events.address == "inproc://events_dp1"
    assert opened.replay is not None
    assert opened.replay.address == "inproc://replay_dp1"
    assert opened.load is None


def test_ipc_has_place_for_one_rank() -> None:
    assert rank_endpoints(config(endpoint="ipc:///tmp/x"), 0, 2).events.address == "ipc:///tmp/x"
    with pytest.raises(ConfigError, match="rank 1"):
        rank_endpoints(config(endpoint="ipc:///tmp/x"), 1, 2)
    assert parse(raw(endpoint="ipc:///tmp/x"), 16, 2).config is None
    assert parse(raw(replay_endpoint="ipc:///tmp/x"), 16, 2).config is None


def test_tcp_without_a_port_cant_be_opened() -> None:
    with pytest.raises(ConfigError, match="port is missing"):
        rank_endpoints(config(endpoint="tcp://127.0.0.1"), 0, 1)


@pytest.mark.parametrize(
    ("host", "node_host", "dialled"),
    [
        ("*", "10.0.0.5", "10.0.0.5"),
        ("0.0.0.0", "10.0.0.5", "10.0.0.5"),
        ("[::]", "fe80::1", "[fe80::1]"),
        ("127.0.0.1", "10.0.0.5", "127.0.0.1"),
        ("[::1]", "10.0.0.5", "[::1]"),
    ],
)
def test_a_wildcard_is_dialled_at_its_node(host: str, node_host: str, dialled: str) -> None:
    assert dial_host(host, node_host) == dialled
