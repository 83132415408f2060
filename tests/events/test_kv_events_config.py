"""The document that SGLang and vLLM take too: their spellings, keys of theirs, and misspelt ones of ours."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigError
from app.events.config import KvEventsConfig
from app.events.endpoints import parse


def raw(**keys: Any) -> str:
    return json.dumps({"publisher": "zmq", **keys})


def config(**keys: Any) -> KvEventsConfig:
    return KvEventsConfig(publisher="zmq", **keys)


TAKEN: dict[str, dict[str, Any]] = {
    "SGLang's bind": {"endpoint": "tcp://*:5557", "topic": "kv", "bind": True},
    "SGLang's format": {"endpoint": "tcp://*:5557", "topic": "kv", "format": "default"},
    "vLLM's switch": {"endpoint": "tcp://*:5557", "topic": "kv", "enable_kv_cache_events": True},
    "numbers in strings": {"endpoint": "tcp://*:5557", "topic": "kv", "buffer_steps": "100"},
    "truths in strings": {"endpoint": "tcp://*:5557", "topic": "kv", "bind": "True", "load_reports": "yes"},
    "their nulls": {"endpoint": "tcp://*:5557", "topic": "kv", "bind": None, "replay_endpoint": None},
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_sglang_and_vllm_take_is_taken_as_text_and_as_a_mapping(case: str) -> None:
    keys = {"publisher": "zmq", **TAKEN[case]}
    described = parse(json.dumps(keys), 16, 2)
    assert described.descriptor is not None
    assert described.descriptor["endpoint_port_base"] == 5557
    assert (described.warnings, described.misconfigured) == ((), False)
    assert parse(keys, 16, 2) == described


def test_their_spellings_mean_what_ours_do() -> None:
    assert config(bind=True).bind == "bind"
    assert config(bind=False).bind == config(bind="false").bind == "connect"
    assert config(bind=None).bind == "auto"
    assert config(format="default").format == "map"
    assert config(buffer_steps="100").buffer_steps == 100


@pytest.mark.parametrize(
    ("keys", "publishes"),
    [
        ({"enable_kv_cache_events": True}, True),
        ({"enable_kv_cache_events": True, "publisher": None}, True),
        ({"enable_kv_cache_events": "true"}, True),
        ({"enable_kv_cache_events": True, "publisher": "null"}, False),
        ({"enable_kv_cache_events": False, "publisher": "zmq"}, False),
        ({"enable_kv_cache_events": False}, False),
        ({"enable_kv_cache_events": None, "publisher": "zmq"}, True),
    ],
)
def test_vllms_switch_does_what_it_does_in_vllm(keys: dict[str, Any], publishes: bool) -> None:
    described = parse(json.dumps(keys), 16, 2)
    assert (described.config is not None) == (described.descriptor is not None) == publishes
    assert (described.reason == "", described.misconfigured) == (publishes, False)


@pytest.mark.parametrize("key", ["made_by", "session_affinity", "x", "max_batch", "0", "é" * 500])
def test_a_key_that_nothing_here_reads_is_a_warning(key: str) -> None:
    described = parse(raw(**{key: [1]}), 16, 2)
    assert described.descriptor is not None
    (warning,) = described.warnings
    assert warning.startswith(f"kv_events_config.{key[:80]}: unknown key, ignored")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("crve", "curve"),
        ("curv", "curve"),
        ("Curve", "curve"),
        ("cruve", "curve"),
        ("curve ", "curve"),
        ("token-ids", "token_ids"),
        ("tokenIds", "token_ids"),
        ("token_id", "token_ids"),
        ("load_endpoint", "load_publish_endpoint"),
        ("topics", "topic"),
        ("replay_enpoint", "replay_endpoint"),
        ("bufferSteps", "buffer_steps"),
        ("enable_kv_cache_event", "enable_kv_cache_events"),
    ],
)
def test_what_is_nearly_a_key_is_refused(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"kv_events_config\.{key}: unknown key; did you mean .*'{meant}'"):
        parse(raw(**{key: True}), 16, 2)


@given(
    st.sampled_from(sorted(KvEventsConfig.model_fields)),
    st.integers(0, 30),
    st.sampled_from(["drop", "swap"]),
)
def test_a_key_with_one_slip_never_passes_as_unknown(key: str, place: int, slip: str) -> None:
    place %= len(key) - 1
    swapped = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
    misspelt = key[:place] + key[place + 1 :] if slip == "drop" else swapped
    if misspelt not in KvEventsConfig.model_fields:
        with pytest.raises(ConfigError, match="did you mean"):
            parse(raw(**{misspelt: True}), 16, 2)


def test_all_misspelt_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"crve.*; kv_events_config\.topics"):
        parse(raw(crve=1, topics=2), 16, 2)


def test_what_an_operator_must_know_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    parse(raw(endpoint="tcp://10.0.0.5:5557", made_by="x"), 16, 2).log(logging.getLogger("test"))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert [text for text in ("misconfigured", "made_by", "no load reports") if text not in caplog.text] == []
