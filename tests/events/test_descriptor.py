"""Reading any server's `kv_events`, and our own back to what our ranks open."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.errors import ConfigError, WireError
from app.events.descriptor import read_descriptor, read_publishers
from app.events.endpoints import parse, rank_endpoints
from app.events.ports import dial_host
from app.events.publisher_info import PublisherAddress

SERVER = "10.0.0.5"
KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
MINIMAL: dict[str, Any] = {
    "publisher": "zmq",
    "endpoint_host": "node-7",
    "endpoint_port_base": 5557,
    "topic": "kv",
    "block_size": 64,
    "dp_size": 2,
}
WHOLE = MINIMAL | {
    "replay_endpoint_port_base": 5600,
    "load_endpoint_port_base": 5559,
    "load_topic": "load",
    "curve_public_key": KEY,
}


def test_null_is_nothing_to_follow() -> None:
    assert read_descriptor(None, SERVER) == ()


def test_rank_r_is_at_every_base_plus_r() -> None:
    assert read_descriptor(WHOLE, SERVER) == (
        PublisherAddress(0, "node-7", 5557, 5600, 5559, "kv", "load", 64, KEY),
        PublisherAddress(1, "node-7", 5558, 5601, 5560, "kv", "load", 64, KEY),
    )


@pytest.mark.parametrize("absent", [{}, dict.fromkeys(WHOLE.keys() - MINIMAL.keys()), {"load_topic": "load"}])
def test_what_does_not_apply_is_none(absent: dict[str, Any]) -> None:
    first, _ = read_descriptor(MINIMAL | absent, SERVER)
    assert first == PublisherAddress(0, "node-7", 5557, None, None, "kv", None, 64)


def test_unknown_keys_are_ignored() -> None:
    assert read_descriptor(WHOLE | {"publishers": [{}], "": None}, SERVER) == read_descriptor(WHOLE, SERVER)


@pytest.mark.parametrize("wildcard", ["*", "0.0.0.0", "::", "[::]", "[0:0::0]"])
@pytest.mark.parametrize(
    ("server", "dialled"), [("10.0.0.5", "10.0.0.5"), ("node", "node"), ("fe80::1", "[fe80::1]")]
)
def test_a_wildcard_host_is_where_the_server_was_reached(wildcard: str, server: str, dialled: str) -> None:
    first, _ = read_descriptor(MINIMAL | {"endpoint_host": wildcard}, server)
    assert first.host == dialled


@pytest.mark.parametrize(
    ("host", "dialled"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("node_7.example", "node_7.example"),
        ("[fe80::1%eth0]", "[fe80::1%eth0]"),
        ("fe80::1", "[fe80::1]"),
    ],
)
def test_other_hosts_are_dialled_as_they_are_with_ipv6_in_brackets(host: str, dialled: str) -> None:
    assert read_descriptor(MINIMAL | {"endpoint_host": host}, SERVER)[0].host == dialled


HUGE = 10**5000
NO_INTEGERS: list[Any] = [
    None,
    True,
    False,
    1.0,
    float("nan"),
    float("inf"),
    "5557",
    [],
    {},
    [1],
    -1,
    0,
    HUGE,
    -HUGE,
]
NO_TEXTS: list[Any] = [None, 1, True, [], {"a": 1}, "\ud800", "x\udfff"]
NO_HOSTS = [
    "",
    " ",
    "a b",
    "a:b",
    "[node]",
    "[::",
    "[[::]]",
    "10.0.0.5:80",
    "x;y",
    "x/y",
    "é",
    "a\0",
    "a" * 254,
]
WRONG: dict[str, list[Any]] = {
    "publisher": [None, "null", "kafka", "ZMQ", 1, ["zmq"]],
    "endpoint_host": NO_TEXTS + NO_HOSTS,
    "endpoint_port_base": [*NO_INTEGERS, 65_535, 65_536, 1_000_000],
    "topic": NO_TEXTS,
    "block_size": [*NO_INTEGERS, 2**31],
    "dp_size": [*NO_INTEGERS, 1025],
    "replay_endpoint_port_base": [*NO_INTEGERS[1:], 65_535, 5558, 5556],
    "load_endpoint_port_base": [*NO_INTEGERS[1:], 65_535, 5557, 5601],
    "load_topic": NO_TEXTS,
    "curve_public_key": [*NO_TEXTS[1:], "", KEY[:-1], KEY + "0", "é" * 20, " " * 40, "#" * 40, "x" * 10**6],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(key, value, id=f"{key}-{index}")
        for key, values in WRONG.items()
        for index, value in enumerate(values)
    ],
)
def test_a_wrong_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(WireError, match=rf"^kv_events\.{key} = .*; (allowed|the)") as caught:
        read_descriptor(WHOLE | {key: value}, SERVER)
    assert len(str(caught.value).encode()) < 300


@pytest.mark.parametrize("key", MINIMAL)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(WireError, match=rf"^kv_events\.{key} is missing; allowed"):
        read_descriptor({name: value for name, value in MINIMAL.items() if name != key}, SERVER)


def test_the_value_is_shown_with_what_is_allowed() -> None:
    with pytest.raises(WireError, match=r"dp_size = 1025; allowed are the integers 1\.\.1024"):
        read_descriptor(MINIMAL | {"dp_size": 1025}, SERVER)
    with pytest.raises(WireError, match=r"endpoint_port_base = 65535; allowed are the integers 1\.\.65534"):
        read_descriptor(MINIMAL | {"endpoint_port_base": 65_535}, SERVER)
    with pytest.raises(WireError, match="block_size = an integer of 16610 bits"):
        read_descriptor(MINIMAL | {"block_size": HUGE}, SERVER)


@pytest.mark.parametrize(
    "value", [1, True, "zmq", [], [WHOLE], pytest.param(HUGE, id="huge"), float("nan"), "\ud800" * 1000]
)
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(WireError, match=r"^kv_events = .*; allowed are an object and null$"):
        read_descriptor(value, SERVER)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5)
json_values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(json_values | st.fixed_dictionaries({}, optional=dict.fromkeys(WHOLE, json_values)))
def test_nothing_but_wire_error_is_raised(value: Any) -> None:
    with suppress(WireError):
        read_descriptor(value, SERVER)


@given(st.sampled_from(list(WHOLE)), json_values)
def test_what_is_accepted_can_be_dialled(key: str, value: Any) -> None:
    try:
        publishers = read_descriptor(WHOLE | {key: value}, SERVER)
    except WireError:
        return
    assert [each.rank for each in publishers] == list(range(len(publishers)))
    for each in publishers:
        ports = (each.event_port, each.replay_port or 1, each.load_port or 1)
        assert all(1 <= port <= 65_535 for port in ports)
        each.topic.encode()


LISTED: dict[str, Any] = {
    "rank": 1,
    "host": "10.0.0.7",
    "event_port": 5558,
    "replay_port": None,
    "load_port": 5660,
    "topic": "kv",
    "load_topic": "load",
    "block_size": 64,
    "state": "publishing",
    "epoch": "a",
}


def test_each_listed_rank_is_at_its_own_host() -> None:
    ranks = [LISTED, {"rank": 2, "state": "unreachable"}, LISTED | {"rank": 0, "host": "*"}]
    described = read_publishers({"kv_events": WHOLE, "publishers": ranks}, SERVER)
    assert [(each.rank, each.event_endpoint) for each in described.to_dial] == [
        (0, f"tcp://{SERVER}:5558"),
        (1, "tcp://10.0.0.7:5558"),
    ]
    assert (described.not_publishing, described.hosts_are_known) == ({2: "unreachable"}, True)


def test_without_a_list_all_ranks_are_at_one_host_which_is_said() -> None:
    for info in ({"kv_events": WHOLE}, {"kv_events": WHOLE, "publishers": None}):
        described = read_publishers(info, SERVER)
        assert described.to_dial == read_descriptor(WHOLE, SERVER)
        assert (described.not_publishing, described.hosts_are_known) == ({}, False)
    assert read_publishers({}, SERVER).to_dial == ()


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({}, "publishers = a dict; allowed is a list"),
        ([7], r"publishers\[0\]: Expected `object`, got `int`"),
        ([{"rank": 0}], r"publishers\[0\]: .*missing required field `state`"),
        (
            [LISTED, LISTED | {"event_port": 0}],
            r"publishers\[1\]: event_port = 0; allowed are the integers 1",
        ),
        ([LISTED | {"replay_port": 65_536}], "replay_port = 65536; allowed are the integers 1"),
        ([LISTED | {"load_port": "5660"}], r"Expected `int \| null`, got `str` - at `\$.load_port`"),
        ([LISTED | {"host": "a b"}], "host = 'a b'; allowed are"),
        ([LISTED | {"topic": "\ud800"}], "topic = .*; allowed is text"),
    ],
)
def test_a_list_that_can_not_be_dialled_is_refused(listed: Any, message: str) -> None:
    with pytest.raises(WireError, match=message):
        read_publishers({"publishers": listed}, SERVER)


@given(st.lists(json_values | st.fixed_dictionaries({}, optional=dict.fromkeys(LISTED, json_values))))
def test_nothing_but_wire_error_is_raised_for_a_list(listed: list[Any]) -> None:
    with suppress(WireError):
        read_publishers({"publishers": listed}, SERVER)


@given(st.sampled_from(list(LISTED)), json_values)
def test_what_is_accepted_of_a_list_can_be_dialled(key: str, value: Any) -> None:
    try:
        described = read_publishers({"publishers": [LISTED | {key: value}]}, SERVER)
    except WireError:
        return
    for each in described.to_dial:
        assert all(
            1 <= port <= 65_535 for port in (each.event_port, each.replay_port or 1, each.load_port or 1)
        )
        each.topic.encode()
        each.event_endpoint.encode()


hosts = st.sampled_from(["*", "0.0.0.0", "[::]", "127.0.0.1", "localhost", "[fe80::1]", "node-7", "a_b"])
ports = st.integers(1, 65_535)


@given(
    host=hosts | st.text(),
    event_port=ports,
    replay_port=st.none() | ports,
    dp_size=st.integers(1, 5) | st.integers(1, 1024),
    block_size=st.integers(1, 2**31 - 1),
    keys=st.fixed_dictionaries(
        {}, optional={"topic": st.text(), "load_reports": st.booleans(), "load_topic": st.text(min_size=1)}
    ),
)
def test_what_we_describe_is_read_back_as_what_ranks_open(
    host: str, event_port: int, replay_port: int | None, dp_size: int, block_size: int, keys: dict[str, Any]
) -> None:
    config: dict[str, Any] = {"publisher": "zmq", "endpoint": f"tcp://{host}:{event_port}", **keys}
    if replay_port is not None:
        config["replay_endpoint"] = f"tcp://{host}:{replay_port}"
    try:
        described = parse(json.dumps(config), block_size, dp_size)
    except ConfigError:
        assume(False)
    publishers = read_descriptor(json.loads(json.dumps(described.descriptor)), SERVER)
    if described.descriptor is None:
        assert publishers == ()
        return
    assert described.config is not None
    assert len(publishers) == dp_size
    for publisher in publishers:
        opened = rank_endpoints(described.config, publisher.rank, dp_size)
        load = opened.load if opened.load and opened.load.port else None  # else in `publishers` alone
        assert publisher == PublisherAddress(
            rank=publisher.rank,
            host=dial_host(opened.events.host, SERVER),
            event_port=opened.events.port or 0,
            replay_port=opened.replay.port if opened.replay else None,
            load_port=load.port if load else None,
            topic=described.config.topic,
            load_topic=described.config.load_topic if load else None,
            block_size=block_size,
        )
