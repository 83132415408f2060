"""CURVE on real sockets: who has the keys gets everything, everybody else nothing, and both sides say why."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml
import zmq
import zmq.asyncio
from zmq.auth import create_certificates

from app.check import IMPORT_PATH, check
from app.errors import ConfigError, EndpointInUseError
from app.events.config import KvEventsConfig
from app.events.curve import (
    CurveClient,
    CurveConfig,
    KeyPair,
    check_key_files,
    load_rank_keys,
    load_router_keys,
)
from app.events.endpoints import parse
from app.events.following.connection import Connection
from app.events.following.recovery_client import RecoveryClient
from app.events.publisher_info import PublisherInfo
from app.events.publishing.publisher import EventPublisher
from app.events.schema import LoadStat, encode_seq
from app.events.snapshot import CacheContent

STAT = LoadStat(1, 2, 3, 4, 0, 6, 7, 8, 9, 10)
OTHER_SERVER = zmq.curve_keypair()[0]


class Keys:
    """Key files as docs/operations.md says to make them: a rank's, a router's, and who may connect."""

    def __init__(self, folder: Path) -> None:
        self.allowed = folder / "clients"
        self.allowed.mkdir()
        self._made = folder / "made"
        self._made.mkdir()
        self.rank_file = self.make("rank")
        self.router_file = self.make("router")
        self.allow("router")

    @property
    def config(self) -> dict[str, str]:
        return {
            "secret_key_file": str(self.rank_file),
            "allowed_clients": str(self.allowed),
            "router_key_file": str(self.router_file),
        }

    @property
    def router(self) -> KeyPair:
        keys = load_router_keys(CurveConfig(**self.config))
        assert keys is not None
        return keys

    def make(self, name: str) -> Path:
        file = Path(create_certificates(self._made, name)[1])
        file.chmod(0o600)
        return file

    def allow(self, name: str) -> None:
        (self.allowed / f"{name}.key").write_bytes((self._made / f"{name}.key").read_bytes())

    def forbid(self, name: str) -> None:
        (self.allowed / f"{name}.key").unlink()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def new_rank(make_rank: Any, keys: Keys, free_ports: Any) -> Callable[..., Any]:
    """Makes ranks with a replay and load reports, encrypted unless told otherwise."""

    def make(**changes: Any) -> Any:
        base = free_ports(6)
        replay = f"tcp://127.0.0.1:{base + 4}"
        config = {"endpoint": f"tcp://127.0.0.1:{base}", "replay_endpoint": replay, "curve": keys.config}
        return make_rank(**(config | changes))

    return make


@pytest.fixture
async def context() -> AsyncIterator[zmq.asyncio.Context]:
    with zmq.asyncio.Context() as context:
        yield context


def client(info: PublisherInfo, keys: KeyPair) -> CurveClient:
    assert info.address.curve_public_key is not None
    return CurveClient(keys, info.address.curve_public_key.encode())


class BareClient:
    """One plain socket at each of a rank's three; asks for a replay and counts what comes."""

    def __init__(self, info: PublisherInfo, curve: CurveClient | None) -> None:
        self._context = zmq.Context()
        self._info = info
        self.events, self.failed_events = self._connect(zmq.SUB, info.address.event_port, curve)
        self.load, self.failed_load = self._connect(zmq.SUB, info.address.load_port, curve)
        self.replay, self.failed_replay = self._connect(zmq.DEALER, info.address.replay_port, curve)
        self.replay.send_multipart([b"", encode_seq(0)])

    def _connect(self, kind: int, port: int | None, curve: CurveClient | None) -> tuple[Any, Any]:
        one = self._context.socket(kind)
        one.setsockopt(zmq.LINGER, 0)
        if kind == zmq.SUB:
            one.subscribe(b"")
        if curve is not None:
            curve.secure(one)
        failed = one.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        one.connect(f"tcp://127.0.0.1:{port}")
        return one, failed

    def heard(self) -> list[bool]:
        """Whether anything has come over events, load and replay."""
        return [bool(each.poll(0)) for each in (self.events, self.load, self.replay)]

    def was_refused(self) -> bool:
        """Whether each of the three sockets saw a handshake fail."""
        return all(each.poll(0) for each in (self.failed_events, self.failed_load, self.failed_replay))

    def close(self) -> None:
        for each in (self.failed_events, self.failed_load, self.failed_replay):
            each.close(linger=0)
        for each in (self.events, self.load, self.replay):
            each.disable_monitor()
            each.close(linger=0)
        self._context.term()


@pytest.fixture
def bare_client() -> Iterator[Callable[..., BareClient]]:
    clients: list[BareClient] = []

    def connect(info: PublisherInfo, curve: CurveClient | None) -> BareClient:
        clients.append(BareClient(info, curve))
        return clients[-1]

    yield connect
    for each in clients:
        each.close()


async def publish_until_heard(rigs: Any, rank: Any, witness: BareClient) -> None:
    """Publish events and load until somebody who may hear them does, by all three sockets."""

    def publish() -> bool:
        rank.step(rigs.stored(7))
        rank.publisher.publish_load(STAT)
        return all(witness.heard())

    assert await rigs.holds(publish)


def warnings(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [message for message in caplog.messages if part in message]


def _done(content: CacheContent) -> Future[CacheContent]:
    future: Future[CacheContent] = Future()
    future.set_result(content)
    return future


async def replayed(recovery: RecoveryClient) -> list[int]:
    """The numbers of the batches that a replay brings."""
    numbers: list[int] = []
    await recovery.replay(0, lambda seq, payload: numbers.append(seq))
    return numbers


# ---- who may


async def test_with_the_right_keys_events_load_and_replay_come(
    new_rank: Any, keys: Keys, follow: Any, rigs: Any, context: Any
) -> None:
    rank, sink, loads = new_rank(), rigs.Blocks(), []
    info = rank.publisher.info("")
    subscriber = follow(info, rank, sink, curve_keys=keys.router, on_load=loads.append)
    assert await rigs.holds(lambda: subscriber.status.state == "exact")
    for number in range(20):
        rank.step(rigs.stored(number))

    def publish_load() -> list[LoadStat]:
        rank.publisher.publish_load(STAT)
        return loads

    assert await rigs.holds(lambda: bool(publish_load()))
    assert loads[0] == STAT
    recovery = RecoveryClient(
        context, f"tcp://127.0.0.1:{info.address.replay_port}", timeout_s=5, curve=client(info, keys.router)
    )
    rank.publisher.serve_snapshots(lambda: _done(rank.publisher.content(rank.truth.as_cached())))
    assert await replayed(recovery) == list(range(21))
    assert (await recovery.snapshot()).seq == 20
    recovery.close()
    subscriber.observe(rank.epoch, rank.seq)
    assert await rigs.holds(lambda: subscriber.status.applied_seq == rank.seq)
    assert sink.hashes == rank.truth.hashes
    assert rank.publisher.info("").state.refused_clients == 0


def test_a_publisher_says_its_public_key_and_never_the_secret_one(new_rank: Any, keys: Keys) -> None:
    info = new_rank().publisher.info("")
    loaded = load_rank_keys(CurveConfig(**keys.config))
    assert info.address.curve_public_key == loaded.public.decode()
    assert loaded.secret.decode() not in repr(info)
    assert loaded.secret.decode() not in repr(client(info, loaded))
    assert (new_rank(curve=None).publisher.info("")).address.curve_public_key is None


async def test_two_ranks_in_one_process_each_have_their_own_keys(
    make_rank: Any, free_ports: Any, keys: Keys, follow: Any, rigs: Any
) -> None:
    base = free_ports(4)
    for number, name in enumerate(["rank", "other"]):
        curve = keys.config | {"secret_key_file": str(keys.make(name))}
        options = {"dp_rank": number, "dp_size": 2}
        rank = make_rank(options, endpoint=f"tcp://127.0.0.1:{base}", curve=curve)
        subscriber = follow(rank.publisher.info(""), rank, rigs.Blocks(), curve_keys=keys.router)
        assert await rigs.holds(lambda subscriber=subscriber: subscriber.status.state == "exact")


# ---- who may not

NO_KEYS = "handshake failed: does the publisher use CURVE?"
WRONG_KEY = "handshake failed: does the publisher use CURVE, with another key?"
REFUSED = "the publisher refused this client's key"


@pytest.mark.parametrize(
    ("case", "client_says", "rank_says"),
    [
        ("no keys", NO_KEYS, "CURVE"),
        ("wrong server key", WRONG_KEY, "the public key of another server"),
        ("unknown client", REFUSED, "is in no *.key file of"),
        ("keys at a plain server", WRONG_KEY, None),
    ],
)
async def test_whoever_lacks_a_key_gets_not_one_message_and_both_sides_say_why(
    new_rank: Any,
    keys: Keys,
    follow: Any,
    rigs: Any,
    bare_client: Any,
    context: Any,
    caplog: pytest.LogCaptureFixture,
    case: str,
    client_says: str,
    rank_says: str | None,
) -> None:
    rank = new_rank(**({"curve": None} if case == "keys at a plain server" else {}))
    info: PublisherInfo = rank.publisher.info("")
    server = (info.address.curve_public_key or "").encode()
    ours = keys.router
    believed, own_keys, curve = {
        "no keys": (None, None, None),
        "wrong server key": (OTHER_SERVER, ours, CurveClient(ours, OTHER_SERVER)),
        "unknown client": (server, stranger := KeyPair(*zmq.curve_keypair()), CurveClient(stranger, server)),
        "keys at a plain server": (OTHER_SERVER, ours, CurveClient(ours, OTHER_SERVER)),
    }[case]

    def new_witness() -> BareClient:
        return bare_client(info, client(info, ours) if info.address.curve_public_key else None)

    outsider = bare_client(info, curve)
    assert await rigs.holds(outsider.was_refused)
    await publish_until_heard(rigs, rank, new_witness())
    assert outsider.heard() == [False, False, False]

    loads: list[LoadStat] = []
    sink = rigs.Blocks()
    told = rigs.with_address(info, curve_public_key=believed and believed.decode())
    subscriber = follow(told, rank, sink, curve_keys=own_keys, on_load=loads.append)
    assert await rigs.holds(lambda: subscriber.status.state == "stale")
    assert client_says in subscriber.status.reason
    await publish_until_heard(rigs, rank, new_witness())
    assert (subscriber.status.state, sink.hashes, loads) == ("stale", set(), [])
    recovery = RecoveryClient(
        context, f"tcp://127.0.0.1:{info.address.replay_port}", timeout_s=0.1, curve=curve
    )
    with pytest.raises(TimeoutError):
        await replayed(recovery)
    with pytest.raises(TimeoutError):
        await recovery.snapshot(timeout_s=0.1)
    if rank_says is not None:
        assert await rigs.holds(lambda: rank.publisher.info("").state.refused_clients >= 3)
        said = warnings(caplog, "client refused by rank 0 at tcp://127.0.0.1:")
        assert any(rank_says in each for each in said), said


async def test_a_router_without_a_key_file_dials_no_rank_that_encrypts(
    new_rank: Any, follow: Any, rigs: Any
) -> None:
    rank = new_rank()
    subscriber = follow(rank.publisher.info(""), rank, rigs.Blocks())
    assert await rigs.holds(lambda: subscriber.status.state == "stale")
    assert "the rank wants CURVE, but no router_key_file is set" in subscriber.status.reason
    assert rank.publisher.info("").state.refused_clients == 0


async def test_something_else_at_the_address_is_connected_without_a_handshake(context: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = Connection(context, f"tcp://127.0.0.1:{listener.getsockname()[1]}", [b""])
        assert not await connection.wait_connected(0.3)
        assert "connected, but no handshake" in connection.trouble
        connection.close()


# ---- the list changes


async def test_a_client_that_is_added_gets_everything_without_a_restart(
    new_rank: Any, keys: Keys, follow: Any, rigs: Any
) -> None:
    rank, loads = new_rank(), []
    added = load_router_keys(CurveConfig(**keys.config | {"router_key_file": str(keys.make("added"))}))
    subscriber = follow(rank.publisher.info(""), rank, rigs.Blocks(), curve_keys=added, on_load=loads.append)
    assert await rigs.holds(
        lambda: subscriber.status.state == "stale" and REFUSED in subscriber.status.reason
    )
    keys.allow("added")
    assert await rigs.holds(lambda: subscriber.status.state == "exact")

    def publish_load() -> list[LoadStat]:
        rank.publisher.publish_load(STAT)
        return loads

    assert await rigs.holds(lambda: bool(publish_load()))


async def test_a_client_that_is_removed_does_not_get_in_any_more(
    new_rank: Any, keys: Keys, context: Any, rigs: Any
) -> None:
    rank = new_rank()
    info = rank.publisher.info("")
    address, curve = f"tcp://127.0.0.1:{info.address.event_port}", client(info, keys.router)
    first = Connection(context, address, [b""], curve)
    assert await first.wait_connected(5)
    keys.forbid("router")
    second = Connection(context, address, [b""], curve)
    assert not await second.wait_connected(5)
    assert REFUSED in second.trouble

    def publish() -> list[list[bytes]]:
        rank.step(rigs.stored(1))
        return first.receive(1)

    assert await rigs.holds(lambda: bool(publish())), "a connection that stands is not cut"
    for connection in (first, second):
        connection.close()


async def test_a_refused_question_is_an_error_and_can_be_asked_again(
    new_rank: Any, keys: Keys, context: Any, rigs: Any, free_ports: Any
) -> None:
    base = free_ports(6)
    ports = {"endpoint": f"tcp://127.0.0.1:{base}", "replay_endpoint": f"tcp://127.0.0.1:{base + 4}"}
    first = new_rank(**ports)
    curve = client(first.publisher.info(""), keys.router)
    recovery = RecoveryClient(context, ports["replay_endpoint"], timeout_s=2, curve=curve)
    assert await replayed(recovery) == [0]
    first.publisher.close()
    # Somebody else must be on the list, or the rank wouldn't start.
    keys.make("other")
    keys.allow("other")
    keys.forbid("router")
    second = new_rank(**ports, curve=keys.config | {"router_key_file": None})
    assert await rigs.holds(lambda: second.publisher.info("").state.refused_clients > 0)
    with pytest.raises(TimeoutError):
        await replayed(recovery)
    keys.allow("router")
    assert await replayed(recovery) == [0]
    recovery.close()


async def test_a_broken_certificate_lets_nobody_in_and_keeps_nobody_out(
    new_rank: Any, keys: Keys, context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    info = new_rank().publisher.info("")
    (keys.allowed / "broken.key").write_text("public-key\n")
    connection = Connection(
        context, f"tcp://127.0.0.1:{info.address.event_port}", [b""], client(info, keys.router)
    )
    assert await connection.wait_connected(5)
    connection.close()
    assert any("broken.key" in each for each in warnings(caplog, "certificate ignored"))


# ---- starting and closing


def test_closing_ends_the_threads_and_can_be_repeated(new_rank: Any, keys: Keys, bare_client: Any) -> None:
    before = set(threading.enumerate())
    publisher = new_rank().publisher
    bare_client(publisher.info(""), None)
    publisher.close()
    publisher.close()
    assert set(threading.enumerate()) <= before
    assert publisher.info("").state.status == "disabled"


def test_a_start_that_fails_half_way_leaves_nothing_behind(
    make_rank: Any, free_ports: Any, keys: Keys
) -> None:
    base = free_ports(2)
    endpoint = f"tcp://127.0.0.1:{base}"
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", base + 1)), pytest.raises(EndpointInUseError):
        make_rank({"bind_timeout_s": 0.1}, endpoint=endpoint, curve=keys.config)
    assert set(threading.enumerate()) <= before
    make_rank(endpoint=endpoint, curve=keys.config)


def test_closing_what_was_never_started_does_nothing(keys: Keys) -> None:
    config = KvEventsConfig(publisher="zmq", curve=keys.config)
    EventPublisher(config, dp_rank=0, dp_size=1, block_size=1).close()


# ---- files that can't be used


def _overwrite(file: Path, text: str) -> None:
    file.write_text(text)


WRONG: dict[str, tuple[Callable[[Keys], object], str, str]] = {
    "no secret file": (lambda keys: keys.rank_file.unlink(), "secret_key_file", "Invalid certificate file"),
    "a folder for a file": (
        lambda keys: (keys.rank_file.unlink(), keys.rank_file.mkdir()),
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
                load_rank_keys(CurveConfig(**keys.config)).public.decode(), OTHER_SERVER.decode()
            ),
        ),
        "secret_key_file",
        "isn't the one of its secret-key",
    ),
    "no folder of clients": (
        lambda keys: (keys.forbid("router"), keys.allowed.rmdir()),
        "allowed_clients",
        "no such folder",
    ),
    "nobody is allowed": (lambda keys: keys.forbid("router"), "allowed_clients", "no *.key file"),
    "a broken certificate": (
        lambda keys: _overwrite(keys.allowed / "broken.key", 'public-key = "abc"'),
        "allowed_clients",
        "broken.key",
    ),
    "the router isn't allowed": (
        lambda keys: (keys.make("new"), keys.allow("new"), keys.forbid("router")),
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
"""On this machine; they may be on another, so the check before the start can't tell."""


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_cant_be_used_is_named_at_the_start_and_before(keys: Keys, case: str) -> None:
    spoil, name, why = WRONG[case]
    spoil(keys)
    config = KvEventsConfig(publisher="zmq", curve=keys.config)
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
    config = CurveConfig(**keys.config)
    with pytest.raises(ConfigError, match=r"kv_events_config\.curve\.router_key_file = .*router\.key_secret"):
        load_router_keys(config)
    load_rank_keys(config)  # on the ranks' nodes that file need not be


def test_files_that_are_not_on_this_machine_are_left_to_the_others(keys: Keys) -> None:
    keys.rank_file.unlink()
    config = CurveConfig(**keys.config)
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


def test_the_check_before_a_start_looks_at_the_files(keys: Keys, tmp_path: Path, free_ports: Any) -> None:
    keys.forbid("router")
    base = free_ports(3)
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
    load_rank_keys(CurveConfig(**keys.config))
    assert bool(warnings(caplog, f"secret_key_file = '{keys.rank_file}'")) == warned


# ---- without CURVE


@pytest.mark.parametrize(
    ("host", "replay_host", "rank", "curve", "warned"),
    [
        ("*", "*", 0, False, True),
        ("127.0.0.1", "0.0.0.0", 0, False, True),
        ("127.0.0.1", "localhost", 0, False, False),
        ("*", "*", 1, False, False),
        ("*", "*", 0, True, False),
    ],
)
def test_a_port_that_others_can_reach_is_warned_of_unless_it_is_encrypted(
    make_rank: Any,
    free_ports: Any,
    keys: Keys,
    caplog: pytest.LogCaptureFixture,
    host: str,
    replay_host: str,
    rank: int,
    curve: bool,
    warned: bool,
) -> None:
    base = free_ports(6)
    make_rank(
        {"dp_rank": rank, "dp_size": 2},
        endpoint=f"tcp://{host}:{base}",
        replay_endpoint=f"tcp://{replay_host}:{base + 2}",
        curve=keys.config if curve else None,
    )
    with caplog.at_level(logging.WARNING):
        assert len(warnings(caplog, "any client that reaches this can read prompts' token ids")) == warned
