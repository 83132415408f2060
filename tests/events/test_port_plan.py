"""Ports that the system chooses, load reports and their ports, and those of ranks of any number."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigError
from app.events.config import KvEventsConfig
from app.events.endpoints import Endpoint, RankEndpoints, parse, rank_endpoints


def raw(**keys: Any) -> str:
    return json.dumps({"publisher": "zmq", **keys})


def config(**keys: Any) -> KvEventsConfig:
    return KvEventsConfig(publisher="zmq", **keys)


# ---- ports that the system chooses


def test_port_0_has_no_descriptor_and_says_why() -> None:
    described = parse(raw(endpoint="tcp://127.0.0.1:0", replay_endpoint="tcp://127.0.0.1:0"), 16, 2)
    assert (described.descriptor, described.misconfigured) == (None, False)
    assert "`publishers` has them" in described.reason
    assert described.warnings == (described.reason,)
    assert described.config is not None
    for rank in range(4):
        opened = rank_endpoints(described.config, rank, 2)
        for each in (opened.events, opened.replay, opened.load):
            assert each is not None
            assert (each.address, each.binds) == ("tcp://127.0.0.1:0", True)


@pytest.mark.parametrize("keys", [{"replay_endpoint": "tcp://*:0"}, {"load_publish_endpoint": "tcp://*:0"}])
def test_port_0_beside_a_row_of_event_ports_is_left_out_of_the_descriptor(keys: dict[str, str]) -> None:
    described = parse(raw(endpoint="tcp://*:5557", **keys), 16, 2)
    assert described.descriptor is not None
    (key,) = keys
    assert not any(name.startswith(key.split("_")[0]) for name in described.descriptor)
    assert "chosen by the system" in described.warnings[0]


@pytest.mark.parametrize(
    "keys",
    [
        {"endpoint": "tcp://10.0.0.5:0"},
        {"endpoint": "tcp://127.0.0.1:0", "bind": False},
        {"endpoint": "tcp://*:5557", "bind": False},
        {"endpoint": "tcp://0.0.0.0:5557", "bind": "connect"},
        {"endpoint": "tcp://eth0:5557", "bind": "connect"},
        {"endpoint": "tcp://[fe80::1%eth0]:5557", "bind": True},
    ],
)
def test_what_no_rank_can_open_or_no_client_can_dial_has_no_descriptor(keys: dict[str, Any]) -> None:
    described = parse(raw(**keys), 16, 2)
    assert (described.config, described.descriptor, described.misconfigured) == (None, None, True)
    assert repr(keys["endpoint"]) in described.reason


# ---- load reports


@pytest.mark.parametrize("keys", [{"endpoint": "tcp://10.0.0.5:5557"}, {"load_reports": False}])
def test_without_ports_for_load_reports_the_descriptor_lacks_both_keys(keys: dict[str, Any]) -> None:
    described = parse(raw(**keys), 16, 1)
    assert described.descriptor is not None
    assert described.descriptor.keys() & {"load_endpoint_port_base", "load_topic"} == set()
    assert described.config is not None
    assert rank_endpoints(described.config, 0, 1).load is None
    assert any("no load reports" in each for each in described.warnings) == ("load_reports" not in keys)


def test_where_no_row_of_ports_is_left_the_system_chooses_those_for_load_reports() -> None:
    described = parse(raw(endpoint="tcp://*:65535"), 16, 1)
    assert described.descriptor is not None
    assert "load_endpoint_port_base" not in described.descriptor
    assert any("the load ports (*, chosen by the system)" in each for each in described.warnings)
    assert rank_endpoints(config(endpoint="tcp://*:65535"), 0, 1).load == Endpoint("tcp://*:0", True, 0)


def test_their_own_endpoint_is_taken_and_always_bound() -> None:
    keys = {"endpoint": "tcp://10.0.0.5:5557", "load_publish_endpoint": "tcp://10.0.0.5:6000"}
    described = parse(raw(**keys), 16, 2)
    assert described.descriptor is not None
    assert described.descriptor["load_endpoint_port_base"] == 6000
    opened = rank_endpoints(config(**keys), 1, 2)
    assert (opened.events.binds, opened.load) == (False, Endpoint("tcp://10.0.0.5:6001", True, 6001))


@pytest.mark.parametrize(
    ("load", "with_what"),
    [(5557, "event"), (5558, "event"), (5556, "event"), (5657, "replay"), (5658, "replay")],
)
def test_load_ports_among_the_others_are_refused(load: int, with_what: str) -> None:
    keys = {"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5657"}
    with pytest.raises(ConfigError, match=rf"load ports {load}\.\.{load + 1} overlap the {with_what} ports"):
        parse(raw(**keys, load_publish_endpoint=f"tcp://*:{load}"), 16, 2)


def test_an_endpoint_for_reports_that_are_not_wanted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"load_publish_endpoint = .*load_reports is false"):
        parse(raw(load_publish_endpoint="tcp://*:6000", load_reports=False), 16, 2)


@pytest.mark.parametrize("key", ["replay_endpoint", "load_publish_endpoint"])
@pytest.mark.parametrize(
    ("host", "other", "advertised"),
    [
        ("127.0.0.1", "*", True),
        ("127.0.0.1", "localhost", True),
        ("*", "0.0.0.0", True),
        ("*", "127.0.0.1", False),
        ("127.0.0.1", "10.0.0.5", False),
        ("collector", "*", False),
        ("collector", "collector", True),
    ],
)
def test_ports_at_another_host_than_the_events_are_not_advertised(
    key: str, host: str, other: str, advertised: bool
) -> None:
    described = parse(raw(endpoint=f"tcp://{host}:5557", **{key: f"tcp://{other}:6000"}), 16, 2)
    assert described.descriptor is not None
    assert (6000 in described.descriptor.values()) == advertised
    assert any("left out of kv_events" in each for each in described.warnings) != advertised


# ---- numbers beyond those of the deployment: of ranks that replace others, or that others leave


def ports_of(opened: RankEndpoints) -> list[int]:
    """The tcp ports that a rank binds where the system doesn't choose them."""
    every = (opened.events, opened.replay, opened.load)
    return [each.port for each in every if each is not None and each.port]


@given(
    st.integers(1, 65_535),
    st.none() | st.integers(1, 65_535),
    st.none() | st.integers(1, 65_535),
    st.integers(1, 1024),
    st.integers(1, 1024),
)
def test_ranks_of_deployments_of_any_size_have_ports_of_their_own(
    events: int, replay: int | None, load: int | None, dp_size: int, new_size: int
) -> None:
    """A rank keeps its ports whatever the size, and no two ranks have one port, old or new."""
    keys = {"endpoint": f"tcp://*:{events}"}
    keys |= {} if replay is None else {"replay_endpoint": f"tcp://*:{replay}"}
    keys |= {} if load is None else {"load_publish_endpoint": f"tcp://*:{load}"}
    try:
        described = [parse(raw(**keys), 16, size) for size in (dp_size, new_size)]
    except ConfigError:
        return
    if any(each.config is None for each in described):
        return
    numbers = sorted({0, 1, dp_size - 1, dp_size, new_size - 1, new_size, 2 * dp_size - 1, 2500})
    owner_of: dict[int, int] = {}
    for rank in numbers:
        opened = rank_endpoints(config(**keys), rank, dp_size)
        assert opened == rank_endpoints(config(**keys), rank, new_size)
        assert all(1 <= port <= 65_535 for port in ports_of(opened))
        for port in ports_of(opened):
            assert owner_of.setdefault(port, rank) == rank
        if rank < max(dp_size, new_size):
            assert opened.events.port == events + rank


def test_a_number_for_which_there_is_no_room_has_ports_that_the_system_chooses() -> None:
    keys = {"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5560"}
    assert ports_of(rank_endpoints(config(**keys), 2, 2)) == [5559, 5562, 5565]
    assert ports_of(rank_endpoints(config(**keys), 3, 2)) == []
    assert ports_of(rank_endpoints(config(endpoint="tcp://*:65534"), 2, 2)) == []


def test_planned_ports_that_are_taken_can_be_left() -> None:
    keys = {"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5657"}
    opened = rank_endpoints(config(**keys), 1, 2, planned=False)
    assert ports_of(opened) == []
    assert opened.events == Endpoint("tcp://*:0", True, 0)


def test_what_has_no_ports_has_a_name_for_the_one_that_replaces() -> None:
    for endpoint in ("ipc:///tmp/x", "inproc://x"):
        assert rank_endpoints(config(endpoint=endpoint), 1, 1).events.address == f"{endpoint}_dp1"


def test_ranges_without_room_between_them_are_a_warning() -> None:
    described = parse(raw(endpoint="tcp://*:5557", replay_endpoint="tcp://*:5559"), 16, 2)
    assert described.descriptor is not None
    assert "at least 4 apart" in described.warnings[0]
    assert parse(raw(endpoint="tcp://*:5557", replay_endpoint="tcp://*:5561"), 16, 2).warnings == ()
