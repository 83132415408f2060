"""A publisher with CURVE: its keys, which clients it lets in, and what it leaves behind."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import closing
from functools import partial

import pytest
import zmq
import zmq.asyncio

from app.errors import EndpointInUseError
from app.events.config import KvEventsConfig
from app.events.curve import (
    load_rank_keys,
    load_router_keys,
)
from app.events.following.connection import Connection
from app.events.publishing.publisher import EventPublisher
from app.events.schema import LoadStat
from tests.support.deadlines import comes_true
from tests.support.events.bare_client import MakeBareClient
from tests.support.events.blocks import Blocks, stored
from tests.support.events.curve_keys import Keys, curve_client
from tests.support.events.ranks import STAT, MakeRank
from tests.support.events.waiting import Follow, is_exact
from tests.support.free_ports import find_free_ports

REFUSED = "the publisher refused this client's key"


def test_a_publisher_says_its_public_key_and_never_the_secret_one(
    encrypted_rank: MakeRank, keys: Keys
) -> None:
    info = encrypted_rank().info
    loaded = load_rank_keys(keys.curve_config())
    assert info.address.curve_public_key == loaded.public.decode()
    assert loaded.secret.decode() not in repr(info)
    assert loaded.secret.decode() not in repr(curve_client(info, loaded))
    assert encrypted_rank(curve=None).address.curve_public_key is None


async def test_two_ranks_in_one_process_each_have_their_own_keys(
    make_rank: MakeRank, keys: Keys, follow: Follow
) -> None:
    base = find_free_ports(8)
    for number, name in enumerate(["rank", "other"]):
        curve = keys.config | {"secret_key_file": str(keys.make(name))}
        options = {"dp_rank": number, "dp_size": 2}
        rank = make_rank(options, endpoint=f"tcp://127.0.0.1:{base}", curve=curve)
        subscriber = follow(rank.info, rank, Blocks(), curve_keys=keys.router)
        assert await comes_true(partial(is_exact, subscriber))


# ---- the list changes


async def test_a_client_that_is_added_gets_everything_without_a_restart(
    encrypted_rank: MakeRank, keys: Keys, follow: Follow
) -> None:
    rank = encrypted_rank()
    loads: list[LoadStat] = []
    added = load_router_keys(keys.curve_config(router_key_file=str(keys.make("added"))))
    subscriber = follow(rank.info, rank, Blocks(), curve_keys=added, on_load=loads.append)
    assert await comes_true(
        lambda: subscriber.status.state == "stale" and REFUSED in subscriber.status.reason
    )
    keys.allow("added")
    assert await comes_true(lambda: is_exact(subscriber))

    def publish_load() -> list[LoadStat]:
        rank.publisher.publish_load(STAT)
        return loads

    assert await comes_true(publish_load)


async def test_a_client_that_is_removed_does_not_get_in_any_more(
    encrypted_rank: MakeRank, keys: Keys, async_context: zmq.asyncio.Context
) -> None:
    rank = encrypted_rank()
    info = rank.info
    address, curve = info.address.event_endpoint, curve_client(info, keys.router)
    with closing(Connection(async_context, address, [b""], curve)) as first:
        assert await first.wait_connected(5)
        keys.forbid("router")
        with closing(Connection(async_context, address, [b""], curve)) as second:
            assert not await second.wait_connected(5)
            assert REFUSED in second.trouble

        def publish() -> list[list[bytes]]:
            rank.step(stored(1))
            return first.receive(1)

        assert await comes_true(publish), "a connection that stands is not cut"


async def test_a_broken_certificate_lets_no_client_in_and_keeps_none_out(
    encrypted_rank: MakeRank, keys: Keys, async_context: zmq.asyncio.Context, caplog: pytest.LogCaptureFixture
) -> None:
    info = encrypted_rank().info
    (keys.allowed / "broken.key").write_text("public-key\n")
    address, curve = info.address.event_endpoint, curve_client(info, keys.router)
    with closing(Connection(async_context, address, [b""], curve)) as connection:
        assert await connection.wait_connected(5)
    ignored = [message for message in caplog.messages if "certificate ignored" in message]
    assert any("broken.key" in message for message in ignored)


# ---- starting and closing


def test_closing_ends_the_threads_and_can_be_repeated(
    encrypted_rank: MakeRank, keys: Keys, bare_client: MakeBareClient
) -> None:
    before = set(threading.enumerate())
    publisher = encrypted_rank().publisher
    bare_client(publisher.info(""), None)
    publisher.close()
    publisher.close()
    assert set(threading.enumerate()) <= before
    assert publisher.info("").state.status == "disabled"


def test_a_start_that_fails_half_way_leaves_nothing_behind(make_rank: MakeRank, keys: Keys) -> None:
    base = find_free_ports(4)
    endpoints = {
        "endpoint": f"tcp://127.0.0.1:{base}",
        "load_publish_endpoint": f"tcp://127.0.0.1:{base + 2}",
    }
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", base + 2)), pytest.raises(EndpointInUseError):
        make_rank({"bind_timeout_s": 0.1}, **endpoints, curve=keys.config)
    assert set(threading.enumerate()) <= before
    make_rank(**endpoints, curve=keys.config)


def test_closing_what_was_never_started_does_nothing(keys: Keys) -> None:
    config = KvEventsConfig(publisher="zmq", curve=keys.curve_config())
    EventPublisher(config, dp_rank=0, dp_size=1, block_size=1).close()


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
    make_rank: MakeRank,
    keys: Keys,
    caplog: pytest.LogCaptureFixture,
    host: str,
    replay_host: str,
    rank: int,
    curve: bool,
    warned: bool,
) -> None:
    base = find_free_ports(12)
    make_rank(
        {"dp_rank": rank, "dp_size": 2},
        endpoint=f"tcp://{host}:{base}",
        replay_endpoint=f"tcp://{replay_host}:{base + 4}",
        curve=keys.config if curve else None,
    )
    with caplog.at_level(logging.WARNING):
        warning = "any client that reaches this can read prompts' token ids"
        assert sum(warning in message for message in caplog.messages) == warned
