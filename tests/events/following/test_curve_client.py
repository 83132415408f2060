"""Following with CURVE: with the keys everything comes, without them nothing, and both sides say why."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import closing

import pytest
import zmq
import zmq.asyncio

from app.events.curve import (
    CurveClient,
    KeyPair,
)
from app.events.following.connection import Connection
from app.events.following.recovery_client import RecoveryClient
from app.events.schema import LoadStat
from tests.support.deadlines import comes_true
from tests.support.events.bare_client import BareClient, MakeBareClient
from tests.support.events.blocks import Blocks, stored
from tests.support.events.curve_keys import Keys, curve_client
from tests.support.events.ranks import STAT, MakeRank, Rank, with_address
from tests.support.events.waiting import Follow, is_exact
from tests.support.free_ports import find_free_ports

OTHER_SERVER = zmq.curve_keypair()[0]
MISMATCH = "handshake failed: does the publisher use CURVE?"
LOST = "connection lost in the handshake: the publisher has died, or "
NO_KEYS = (MISMATCH, LOST + "wants CURVE")
"""Whichever side notices first."""
WRONG_KEY = (LOST + "its CURVE key is another one",)
REFUSED = ("the publisher refused this client's key",)


async def publish_until_received(rank: Rank, witness: BareClient) -> None:
    """Publish events and load until an allowed client has received something at all three sockets."""

    def publish() -> bool:
        rank.step(stored(7))
        rank.publisher.publish_load(STAT)
        return all(witness.received())

    assert await comes_true(publish)


async def replayed(recovery: RecoveryClient) -> list[int]:
    """The numbers of the batches that a replay brings."""
    numbers: list[int] = []
    await recovery.replay(0, lambda seq, payload: numbers.append(seq))
    return numbers


async def test_with_the_right_keys_events_load_and_replay_come(
    encrypted_rank: MakeRank, keys: Keys, follow: Follow, async_context: zmq.asyncio.Context
) -> None:
    rank, sink = encrypted_rank(), Blocks()
    loads: list[LoadStat] = []
    info = rank.info
    subscriber = follow(info, rank, sink, curve_keys=keys.router, on_load=loads.append)
    assert await comes_true(lambda: is_exact(subscriber))
    for number in range(20):
        rank.step(stored(number))

    def publish_load() -> list[LoadStat]:
        rank.publisher.publish_load(STAT)
        return loads

    assert await comes_true(publish_load)
    assert loads[0] == STAT
    assert info.address.replay_endpoint is not None
    curve = curve_client(info, keys.router)
    with closing(
        RecoveryClient(async_context, info.address.replay_endpoint, timeout_s=5, curve=curve)
    ) as recovery:
        assert await replayed(recovery) == list(range(21))
        assert (await recovery.snapshot()).seq == 20
    subscriber.observe(rank.epoch, rank.seq)
    assert await comes_true(lambda: subscriber.status.applied_seq == rank.seq)
    assert sink.hashes == rank.truth.hashes
    assert rank.info.state.refused_clients == 0


@pytest.mark.parametrize(
    ("case", "client_says", "rank_says"),
    [
        ("no keys", NO_KEYS, "CURVE"),
        ("wrong server key", WRONG_KEY, "the public key of another server"),
        ("unknown client", REFUSED, "is in no *.key file of"),
        ("keys at a plain server", (MISMATCH, *WRONG_KEY), None),
    ],
)
async def test_a_client_that_lacks_a_key_gets_not_one_message_and_both_sides_say_why(
    encrypted_rank: MakeRank,
    keys: Keys,
    follow: Follow,
    bare_client: MakeBareClient,
    async_context: zmq.asyncio.Context,
    caplog: pytest.LogCaptureFixture,
    case: str,
    client_says: Sequence[str],
    rank_says: str | None,
) -> None:
    rank = encrypted_rank(**({"curve": None} if case == "keys at a plain server" else {}))
    info = rank.info
    assert info.address.replay_endpoint is not None
    server = (info.address.curve_public_key or "").encode()
    ours = keys.router
    stranger = KeyPair(*zmq.curve_keypair())
    cases: dict[str, tuple[bytes | None, KeyPair | None, CurveClient | None]] = {
        "no keys": (None, None, None),
        "wrong server key": (OTHER_SERVER, ours, CurveClient(ours, OTHER_SERVER)),
        "unknown client": (server, stranger, CurveClient(stranger, server)),
        "keys at a plain server": (OTHER_SERVER, ours, CurveClient(ours, OTHER_SERVER)),
    }
    believed, own_keys, curve = cases[case]

    def new_witness() -> BareClient:
        return bare_client(info, curve_client(info, ours) if info.address.curve_public_key else None)

    outsider = bare_client(info, curve)
    assert await comes_true(outsider.was_refused)
    await publish_until_received(rank, new_witness())
    assert outsider.received() == [False, False, False]

    loads: list[LoadStat] = []
    sink = Blocks()
    described = with_address(info, curve_public_key=believed and believed.decode())
    subscriber = follow(described, rank, sink, curve_keys=own_keys, on_load=loads.append)
    assert await comes_true(lambda: subscriber.status.state == "stale")
    assert subscriber.status.reason.endswith(tuple(client_says)), subscriber.status
    await publish_until_received(rank, new_witness())
    assert (subscriber.status.state, sink.hashes, loads) == ("stale", set(), [])
    recovery = RecoveryClient(async_context, info.address.replay_endpoint, timeout_s=0.1, curve=curve)
    with pytest.raises(TimeoutError):
        await replayed(recovery)
    with pytest.raises(TimeoutError):
        await recovery.snapshot(timeout_s=0.1)
    if rank_says is not None:
        assert await comes_true(lambda: rank.info.state.refused_clients >= 3)
        refusal = "client refused by rank 0 at tcp://127.0.0.1:"
        said = [message for message in caplog.messages if refusal in message]
        assert any(rank_says in each for each in said), said


async def test_a_router_without_a_key_file_dials_no_rank_that_encrypts(
    encrypted_rank: MakeRank, follow: Follow
) -> None:
    rank = encrypted_rank()
    subscriber = follow(rank.info, rank, Blocks())
    assert await comes_true(lambda: subscriber.status.state == "stale")
    assert "the rank wants CURVE, but no router_key_file is set" in subscriber.status.reason
    assert rank.info.state.refused_clients == 0


async def test_something_else_at_the_address_is_connected_without_a_handshake(
    async_context: zmq.asyncio.Context,
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        closing(
            Connection(async_context, f"tcp://127.0.0.1:{listener.getsockname()[1]}", [b""])
        ) as connection,
    ):

        async def is_told() -> bool:
            assert not await connection.wait_connected(0.1)
            return "connected, but no handshake" in connection.trouble

        assert await comes_true(is_told)


async def test_a_refused_question_is_an_error_and_can_be_asked_again(
    encrypted_rank: MakeRank, keys: Keys, async_context: zmq.asyncio.Context
) -> None:
    base = find_free_ports(8)
    ports = {"endpoint": f"tcp://127.0.0.1:{base}", "replay_endpoint": f"tcp://127.0.0.1:{base + 4}"}
    first = encrypted_rank(**ports)
    curve = curve_client(first.info, keys.router)
    with closing(
        RecoveryClient(async_context, ports["replay_endpoint"], timeout_s=2, curve=curve)
    ) as recovery:
        assert await replayed(recovery) == [0]
        first.publisher.close()
        # Another client must be on the list, or the rank wouldn't start.
        keys.make("other")
        keys.allow("other")
        keys.forbid("router")
        second = encrypted_rank(**ports, curve=keys.config | {"router_key_file": None})
        assert await comes_true(lambda: second.info.state.refused_clients > 0)
        with pytest.raises(TimeoutError):
            await replayed(recovery)
        keys.allow("router")
        assert await replayed(recovery) == [0]
