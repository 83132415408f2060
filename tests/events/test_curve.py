"""Key files that can't be used: named before the start and at the start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
import zmq
import zmq.asyncio

from app.check import IMPORT_PATH, check
from app.errors import ConfigError
from app.events.config import KvEventsConfig
from app.events.curve import (
    check_key_files,
    load_rank_keys,
    load_router_keys,
)
from app.events.endpoints import parse
from app.events.publishing.publisher import EventPublisher
from tests.support.events.curve_keys import Keys
from tests.support.free_ports import find_free_ports

OTHER_SERVER = zmq.curve_keypair()[0]


def _overwrite(file: Path, text: str) -> None:
    file.write_text(text)


def _make_folder_of_secret_file(keys: Keys) -> None:
    keys.rank_file.unlink()
    keys.rank_file.mkdir()


def _remove_folder_of_clients(keys: Keys) -> None:
    keys.forbid("router")
    keys.allowed.rmdir()


def _allow_another_than_the_router(keys: Keys) -> None:
    keys.make("new")
    keys.allow("new")
    keys.forbid("router")


WRONG: dict[str, tuple[Callable[[Keys], object], str, str]] = {
    "no secret file": (lambda keys: keys.rank_file.unlink(), "secret_key_file", "Invalid certificate file"),
    "a folder for a file": (
        _make_folder_of_secret_file,
        "secret_key_file",
        "Is a directory",
    ),
    "the public file": (
        lambda keys: _overwrite(keys.rank_file, keys.rank_file.with_suffix(".key").read_text()),
        "secret_key_file",
        "there is no secret-key in it",
    ),
    "no key at all": (lambda keys: _overwrite(keys.rank_file, ""), "secret_key_file", "No public key"),
    "a short key": (
        lambda keys: _overwrite(keys.rank_file, 'public-key = "abc"\nsecret-key = "def"\n'),
        "secret_key_file",
        "public-key isn't 40 characters of z85",
    ),
    "a key that is no z85": (
        lambda keys: _overwrite(
            keys.rank_file, f'public-key = "{OTHER_SERVER.decode()}"\nsecret-key = "{"~" * 40}"\n'
        ),
        "secret_key_file",
        "secret-key isn't 40 characters of z85",
    ),
    "two halves of different pairs": (
        lambda keys: _overwrite(
            keys.rank_file,
            keys.rank_file.read_text().replace(
                load_rank_keys(keys.curve_config()).public.decode(), OTHER_SERVER.decode()
            ),
        ),
        "secret_key_file",
        "isn't the one of its secret-key",
    ),
    "no folder of clients": (
        _remove_folder_of_clients,
        "allowed_clients",
        "no such folder",
    ),
    "no client is allowed": (lambda keys: keys.forbid("router"), "allowed_clients", "no *.key file"),
    "a broken certificate": (
        lambda keys: _overwrite(keys.allowed / "broken.key", 'public-key = "abc"'),
        "allowed_clients",
        "broken.key",
    ),
    "the router isn't allowed": (
        _allow_another_than_the_router,
        "router_key_file",
        "the ranks would refuse it",
    ),
    "the router's file is broken": (
        lambda keys: _overwrite(keys.router_file, ""),
        "router_key_file",
        "No public key",
    ),
}


MISSING = ("no secret file", "no folder of clients")
"""On this machine; they may be on another, so the check before the start can't find them."""


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_cant_be_used_is_named_at_the_start_and_before(keys: Keys, case: str) -> None:
    spoil, name, why = WRONG[case]
    spoil(keys)
    config = KvEventsConfig(publisher="zmq", curve=keys.curve_config())
    assert config.curve is not None
    with pytest.raises(ConfigError) as caught:
        EventPublisher(config, dp_rank=0, dp_size=1, block_size=1)
    message = str(caught.value)
    assert message.startswith(f"kv_events_config.curve.{name} = '{keys.config[name]}'")
    assert why in message
    if case not in MISSING:
        with pytest.raises(ConfigError) as before:
            check_key_files(config.curve)
        assert str(before.value) == message


def test_a_router_names_its_own_file(keys: Keys) -> None:
    keys.router_file.unlink()
    config = keys.curve_config()
    with pytest.raises(ConfigError, match=r"kv_events_config\.curve\.router_key_file = .*router\.key_secret"):
        load_router_keys(config)
    load_rank_keys(config)  # on the ranks' nodes that file need not be


def test_files_that_are_not_on_this_machine_are_left_to_the_others(keys: Keys) -> None:
    keys.rank_file.unlink()
    config = keys.curve_config()
    assert check_key_files(config) == [keys.rank_file]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"secret_key_file": "keys/rank.key_secret"}, r"curve\.secret_key_file = 'keys/.*an absolute path"),
        ({"router_key_file": "router"}, r"curve\.router_key_file = 'router'.*an absolute path"),
        ({"allowed_clients": None}, r"curve\.allowed_clients = None"),
        ({"client_keys": "/x"}, r"curve\.client_keys: unknown key; allowed here: .*allowed_clients"),
    ],
)
def test_a_wrong_setting_is_named(keys: Keys, changes: dict[str, Any], message: str) -> None:
    raw = json.dumps({"publisher": "zmq", "curve": keys.config | changes})
    with pytest.raises(ConfigError, match=message):
        parse(raw, 16, 2)


def test_the_check_before_a_start_looks_at_the_files(keys: Keys, tmp_path: Path) -> None:
    keys.forbid("router")
    base = find_free_ports(6)
    events = {"publisher": "zmq", "endpoint": f"tcp://127.0.0.1:{base + 1}", "curve": keys.config}
    args = {"dp_size": 1, "kv_events_config": json.dumps(events)}
    application = {"name": "kvbeacon", "import_path": IMPORT_PATH, "args": args}
    file = tmp_path / "serve_config.yaml"
    file.write_text(yaml.safe_dump({"http_options": {"port": base}, "applications": [application]}))
    with pytest.raises(ConfigError, match=r"kv_events_config\.curve\.allowed_clients"):
        check(file)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_secret_that_others_can_read_is_warned_of(
    keys: Keys, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    keys.rank_file.chmod(mode)
    load_rank_keys(keys.curve_config())
    given = f"secret_key_file = '{keys.rank_file}'"
    assert any(given in message for message in caplog.messages) == warned
