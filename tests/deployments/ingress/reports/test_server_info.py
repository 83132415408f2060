"""The descriptor: every case in which there is none, and what else `/server_info` shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from app.config import AppConfig, load_config
from app.deployments.ingress.reports.server_info import model_info, server_info
from app.deployments.messages import RankInfo
from app.errors import ConfigError
from app.events.config import KvEventsConfig
from app.events.endpoints import parse_kv_events
from app.events.publisher_info import PublisherAddress, PublisherInfo, PublisherState
from app.events.publishing.publisher import EventPublisher
from tests.support.rank_info import MAX_MODEL_LEN, rank_info

ZMQ = {"publisher": "zmq", "endpoint": "tcp://*:5557", "topic": "kv"}


def app_config(events: Any = None, **args: Any) -> AppConfig:
    raw = events if events is None or isinstance(events, str) else json.dumps(events)
    return load_config({"kv_events_config": raw} | args)


def info_of(config: AppConfig, ranks: Sequence[RankInfo]) -> dict[str, Any]:
    return server_info(config, parse_kv_events(config), MAX_MODEL_LEN, ranks)


def test_the_descriptor_is_sglangs() -> None:
    config = app_config(ZMQ, engine={"cache": {"block_size": 64}})
    info = info_of(config, [rank_info(0), rank_info(1)])
    assert info["kv_events"] == {
        "publisher": "zmq",
        "endpoint_host": "*",
        "endpoint_port_base": 5557,
        "topic": "kv",
        "block_size": 64,
        "dp_size": 2,
        "load_endpoint_port_base": 6581,
        "load_topic": "load",
    }


def test_without_load_reports_only_sglangs_required_keys_are_there() -> None:
    descriptor = info_of(app_config(ZMQ | {"load_reports": False}), [])["kv_events"]
    assert list(descriptor) == [
        "publisher",
        "endpoint_host",
        "endpoint_port_base",
        "topic",
        "block_size",
        "dp_size",
    ]


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::]", "127.0.0.1", "10.0.0.5", "node-7.example"])
def test_the_host_is_verbatim(host: str) -> None:
    descriptor = info_of(app_config(ZMQ | {"endpoint": f"tcp://{host}:5557"}), [])["kv_events"]
    assert descriptor["endpoint_host"] == host


def test_the_replay_port_is_there_when_it_applies() -> None:
    config = app_config(ZMQ | {"replay_endpoint": "tcp://*:6000"})
    assert info_of(config, [])["kv_events"]["replay_endpoint_port_base"] == 6000


NO_DESCRIPTOR: dict[str, Any] = {
    "no config": None,
    "an empty string": "",
    "publisher not set": {"endpoint": "tcp://*:5557"},
    "publisher null": {"publisher": None, "endpoint": "tcp://*:5557"},
    'publisher "null"': {"publisher": "null", "endpoint": "tcp://*:5557"},
    "malformed JSON": '{"publisher": "zmq"',
    "JSON, but no object": '["zmq"]',
    "JSON null": "null",
    "inproc": ZMQ | {"endpoint": "inproc://events"},
    "ipc": ZMQ | {"endpoint": "ipc:///tmp/events"},
    "no port": ZMQ | {"endpoint": "tcp://127.0.0.1"},
    "no port after the colon": ZMQ | {"endpoint": "tcp://127.0.0.1:"},
    "a port that is no integer": ZMQ | {"endpoint": "tcp://127.0.0.1:http"},
    "port 0": ZMQ | {"endpoint": "tcp://127.0.0.1:0"},
    "a host with a zone": ZMQ | {"endpoint": "tcp://[fe80::1%eth0]:5557", "bind": True},
    "an interface, and no rank says its address": ZMQ | {"endpoint": "tcp://eth0:5557"},
    "switched off": ZMQ | {"enable_kv_cache_events": False},
    "port -1": ZMQ | {"endpoint": "tcp://127.0.0.1:-1"},
    "port 65536": ZMQ | {"endpoint": "tcp://127.0.0.1:65536"},
    "port 1000000": ZMQ | {"endpoint": "tcp://127.0.0.1:1000000"},
    "a last rank beyond port 65535": ZMQ | {"endpoint": "tcp://127.0.0.1:65535"},
    "an empty host": ZMQ | {"endpoint": "tcp://:5557"},
    "a bare IPv6 address": ZMQ | {"endpoint": "tcp://::1:5557"},
}


@pytest.mark.parametrize("case", NO_DESCRIPTOR)
def test_the_descriptor_is_null_and_everything_else_is_there(case: str) -> None:
    config = app_config(NO_DESCRIPTOR[case])
    info = info_of(config, [rank_info(0), rank_info(1)])
    whole = info_of(app_config(ZMQ), [rank_info(0), rank_info(1)])
    assert info.keys() == whole.keys()
    assert info["kv_events"] is None
    assert info["kv_events_config"] == config.kv_events_config
    for key in whole.keys() - {"kv_events", "kv_events_config", "config"}:
        assert info[key] == whole[key]
    assert info["config"] == whole["config"] | {"kv_events_config": config.kv_events_config}


@pytest.mark.parametrize("block_size", [None, 0, -16])
def test_a_block_size_that_would_make_it_null_is_refused_before(block_size: int | None) -> None:
    with pytest.raises(ConfigError, match=r"args\.engine\.cache\.block_size"):
        app_config(ZMQ, engine={"cache": {"block_size": block_size}})


@pytest.mark.parametrize("case", NO_DESCRIPTOR)
def test_the_raw_string_stays_as_it_was(case: str) -> None:
    config = app_config(NO_DESCRIPTOR[case])
    assert info_of(config, [])["kv_events_config"] == config.kv_events_config


def test_every_setting_is_there() -> None:
    config = app_config(ZMQ)
    info = info_of(config, [])
    assert info["config"] == config.model_dump(mode="json")


def test_secrets_among_vllms_arguments_are_hidden() -> None:
    vllm = {"hf_token": "hunter2", "enforce_eager": True, "model_loader_extra_config": {"api_key": "hunter2"}}
    info = info_of(app_config(ZMQ, engine={"backend": "vllm", "vllm": vllm}), [rank_info(0)])
    assert "hunter2" not in json.dumps(info)
    assert info["config"]["engine"]["vllm"]["enforce_eager"] is True


def test_what_could_not_be_used_of_foreign_events_is_there() -> None:
    counted = {"state": "whole", "relay": {"faults": {"unknown_type": 1}}}
    ranks = [replace(rank_info(0), foreign_events=counted), rank_info(1)]
    states = info_of(app_config(ZMQ), ranks)["internal_states"]
    assert [each["foreign_events"] for each in states] == [counted, None]


def test_of_tenants_only_their_header_is_there() -> None:
    info = info_of(app_config(ZMQ, ingress={"tenant_header": "X-Tenant"}), [rank_info(0)])
    assert info["config"]["ingress"]["tenant_header"] == "X-Tenant"
    assert "salt" not in json.dumps(info)


SGLANGS_TYPES: dict[str, type | tuple[type, ...]] = {
    "model_path": str,
    "served_model_name": str,
    "is_generation": bool,
    "tp_size": int,
    "dp_size": int,
    "max_running_requests": int,
    "page_size": int,
    "version": str,
    "kv_events": dict,
    "kv_events_config": str,
    "internal_states": list,
}
"""SGLang's names, among them all that smg 1.13.0, sglang-router 0.3.2 and SGLang's own router read."""


def test_sglangs_names_have_sglangs_types_and_all_others_are_known_to_be_ours() -> None:
    info = info_of(app_config(ZMQ), [rank_info(0), rank_info(1)])
    for name, expected in SGLANGS_TYPES.items():
        assert isinstance(info[name], expected), name
        assert expected is bool or not isinstance(info[name], bool), name
    assert info.keys() - SGLANGS_TYPES.keys() == {"config", "publishers", "max_model_len"}
    assert len(info["internal_states"]) == info["dp_size"]


def test_a_mapping_is_shown_as_it_was_given() -> None:
    events = {"publisher": "zmq", "endpoint": "tcp://*:5557", "topic": "kv", "bind": True, "hwm": "100"}
    info = server_info(
        config := load_config({"kv_events_config": events}), parse_kv_events(config), MAX_MODEL_LEN, []
    )
    assert info["kv_events_config"] == events
    assert info["kv_events"] == info_of(app_config(events), [])["kv_events"]


def publisher_at(rank: int, host: str) -> PublisherInfo:
    address = PublisherAddress(rank, host, 5557 + rank, None, None, "kv", None, 16)
    return PublisherInfo(address, PublisherState("epoch", 9, "publishing"))


@pytest.mark.parametrize("bind", ["auto", "bind", True])
def test_an_interfaces_name_is_replaced_by_the_address_that_the_ranks_say(bind: Any) -> None:
    config = app_config(ZMQ | {"endpoint": "tcp://eth0:5557", "bind": bind})
    ranks = [rank_info(rank, publisher_at(rank, "10.0.0.5")) for rank in range(2)]
    assert info_of(config, ranks)["kv_events"]["endpoint_host"] == "10.0.0.5"
    elsewhere = [ranks[0], rank_info(1, publisher_at(1, "10.0.0.6"))]
    assert info_of(config, elsewhere)["kv_events"] is None, "one host can't describe two nodes"


def test_what_sglangs_routers_read() -> None:
    config = app_config(ZMQ, engine={"scheduler": {"max_running_requests": 7}})
    info = info_of(config, [rank_info(0), rank_info(1)])
    assert info["model_path"] == info["served_model_name"] == "smollm2-135m-instruct"
    assert (info["tp_size"], info["dp_size"], info["page_size"]) == (1, 2, 16)
    assert info["max_running_requests"] == 7
    assert info["max_model_len"] == MAX_MODEL_LEN
    assert isinstance(info["version"], str)


def test_one_entry_per_rank_also_for_one_that_does_not_answer() -> None:
    rank, port = 1, 5558
    publisher = PublisherInfo(
        PublisherAddress(rank, "10.0.0.5", port, None, 5561, "kv", "load", 16),
        PublisherState("epoch", 9, "publishing"),
    )
    info = info_of(app_config(ZMQ, dp_size=3), [rank_info(1, publisher), rank_info(2)])
    assert info["publishers"] == [
        {"rank": 0, "state": "unreachable"},
        {
            "rank": 1,
            "host": "10.0.0.5",
            "event_port": 5558,
            "replay_port": None,
            "load_port": 5561,
            "topic": "kv",
            "load_topic": "load",
            "block_size": 16,
            "epoch": "epoch",
            "last_seq": 9,
            "state": "publishing",
            "dropped_batches": 0,
            "overflows": 0,
            "curve_public_key": None,
            "refused_clients": 0,
            "cache": "whole",
            "cache_reason": None,
        },
        {"rank": 2, "state": "disabled"},
    ]
    states = info["internal_states"]
    assert states[0] == {"dp_rank": 0, "state": "unreachable"}
    assert [state["dp_rank"] for state in states] == [0, 1, 2]
    assert (states[1]["pid"], states[1]["num_blocks"], states[1]["num_cached_blocks"]) == (101, 50, 20)
    assert states[1]["load"]["num_running_reqs"] == 1
    assert states[1]["load"]["total_prefill_busy_us"] == 10
    assert len(states[1]["load"]) == 10


def test_what_a_rank_says_of_its_state_is_shown_with_the_reason() -> None:
    publisher = PublisherInfo(
        PublisherAddress(1, "10.0.0.5", 5558, None, 5561, "kv", "load", 16),
        PublisherState("e", 9, "publishing"),
    )
    foreign = replace(rank_info(1, publisher), unavailable="worker down", partial_cache="adopted late")
    info = info_of(app_config(ZMQ), [rank_info(0, publisher), foreign])
    shown = [(state["state"], state["reason"]) for state in info["internal_states"]]
    assert shown == [("ready", None), ("unavailable", "worker down")]
    caches = [(each["cache"], each["cache_reason"]) for each in info["publishers"]]
    assert caches == [("whole", None), ("partial", "adopted late")]


CURVE = {"secret_key_file": "/keys/rank.key_secret", "allowed_clients": "/keys/clients"}
"""Files of the ranks' nodes; there are none on the ingress's."""


@pytest.mark.parametrize("silent", [[], [rank_info(0)]], ids=["rank 0 doesn't answer", "nor publishes"])
def test_ranks_that_encrypt_say_with_which_key(silent: list[RankInfo]) -> None:
    key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    publisher = PublisherInfo(
        PublisherAddress(1, "10.0.0.5", 5558, None, 5561, "kv", "load", 16, key),
        PublisherState("epoch", 9, "publishing", refused_clients=3),
    )
    config = app_config(ZMQ | {"curve": CURVE})
    info = info_of(config, [*silent, rank_info(1, publisher)])
    plain = info_of(app_config(ZMQ), [])
    assert info["kv_events"] == plain["kv_events"] | {"curve_public_key": key}
    assert (info["publishers"][1]["curve_public_key"], info["publishers"][1]["refused_clients"]) == (key, 3)


def test_while_no_rank_says_its_key_there_is_no_descriptor_to_follow() -> None:
    config = app_config(ZMQ | {"curve": CURVE})
    info = info_of(config, [])
    assert info["kv_events"] is None
    assert info.keys() == info_of(app_config(ZMQ), []).keys()


def test_no_rank_answers() -> None:
    info = info_of(app_config(ZMQ), [])
    assert info["kv_events"] is not None
    assert [state["state"] for state in info["internal_states"]] == ["unreachable"] * 2


def ranks_of(raw: Any, numbers: list[int], *, dp_size: int, planned: bool = True) -> list[RankInfo]:
    """Ranks as they describe themselves with what they would bind."""
    publishers = [
        EventPublisher(
            KvEventsConfig.model_validate(raw), dp_rank=rank, dp_size=dp_size, block_size=16, planned=planned
        )
        for rank in numbers
    ]
    return [rank_info(each.rank, each.info("10.0.0.5")) for each in publishers]


@pytest.mark.parametrize(
    ("numbers", "dp_size"),
    [
        ([], 2),  # no rank answers
        ([0], 2),  # one is missing
        ([0, 1], 2),
        ([0, 2], 3),  # the new rank 2 while rank 1 leaves
        ([0, 1, 2, 3], 4),  # all are being replaced, or there are fewer to be
    ],
)
def test_it_describes_what_is_there(numbers: list[int], dp_size: int) -> None:
    info = info_of(app_config(ZMQ), ranks_of(ZMQ, numbers, dp_size=2))
    assert (info["dp_size"], info["kv_events"]["dp_size"]) == (dp_size, dp_size)
    missing = [rank for rank in range(2) if rank not in numbers]
    for entries, key in ((info["publishers"], "rank"), (info["internal_states"], "dp_rank")):
        assert [each[key] for each in entries] == sorted(numbers + missing)
        assert [each[key] for each in entries if each["state"] == "unreachable"] == missing


def test_a_rank_at_ports_of_the_systems_choice_is_in_publishers_alone() -> None:
    ranks = [*ranks_of(ZMQ, [0, 1], dp_size=2), *ranks_of(ZMQ, [2], dp_size=2, planned=False)]
    info = info_of(app_config(ZMQ), ranks)
    assert (info["dp_size"], info["kv_events"]["dp_size"]) == (3, 2)
    assert [each["rank"] for each in info["publishers"]] == [0, 1, 2]


def test_two_that_claim_a_number_are_both_shown() -> None:
    ranks = ranks_of(ZMQ, [0, 1, 1], dp_size=2)
    info = info_of(app_config(ZMQ), [*ranks[:2], replace(ranks[2], replica_id="other")])
    assert [each["replica_id"] for each in info["internal_states"]] == ["replica-0", "replica-1", "other"]


def test_what_is_advertised_is_what_a_publisher_binds() -> None:
    raw = ZMQ | {"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5657"}
    descriptor = info_of(app_config(raw, dp_size=4), [])["kv_events"]
    for rank in range(4):
        publisher = EventPublisher(KvEventsConfig.model_validate(raw), dp_rank=rank, dp_size=4, block_size=16)
        address = publisher.info("10.0.0.5").address
        assert address.event_port == descriptor["endpoint_port_base"] + rank
        assert address.replay_port == descriptor["replay_endpoint_port_base"] + rank
        assert address.load_port == descriptor["load_endpoint_port_base"] + rank


def test_it_is_plain_json_without_anything_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBEACON_API_KEY", "sk-very-secret")
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    shown = json.dumps(info_of(app_config(ZMQ), [rank_info(0)]))
    assert "secret" not in shown
    for name in ("api_key", "apikey", 'token"', "password"):
        assert name not in shown.lower()


def test_model_info_is_part_of_server_info() -> None:
    config = app_config(ZMQ, model={"served_name": "mine"})
    info = model_info(config, MAX_MODEL_LEN)
    assert info == {
        "model_path": "smollm2-135m-instruct",
        "served_model_name": "mine",
        "is_generation": True,
        "max_model_len": MAX_MODEL_LEN,
    }
    assert info.items() <= info_of(config, [rank_info(0)]).items()
