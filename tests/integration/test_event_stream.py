"""A subscriber that knows only the server's URL, written against the wire format alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq

from app import hashing
from tests.support.deadlines import wait_until
from tests.support.graph.serve_graph import ServeGraph

END = b"\xff" * 8


class Follower:
    """One rank's block set, from its replay and its live events; plain pyzmq and msgspec."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], descriptor: dict[str, Any], rank: int
    ) -> None:
        host = descriptor["endpoint_host"]
        self.block_size = descriptor["block_size"]
        self.blocks: set[int] = set()
        self.stored: list[dict[str, Any]] = []
        self.num_removed = 0
        self.last_seq = -1
        self.gaps = 0
        self._sub = context.socket(zmq.SUB)
        self._sub.subscribe(descriptor["topic"])
        self._sub.connect(f"tcp://{host}:{descriptor['endpoint_port_base'] + rank}")
        self._replay = context.socket(zmq.DEALER)
        self._replay.connect(f"tcp://{host}:{descriptor['replay_endpoint_port_base'] + rank}")

    def catch_up(self) -> None:
        """Take the missing batches from the replay, then those that have arrived live."""
        self._replay.send_multipart([b"", (self.last_seq + 1).to_bytes(8, "big")])
        while (frames := self._receive(self._replay))[2] != END:
            self._take(frames[2], frames[3])
        while self._sub.poll(0):
            _, seq, payload = self._sub.recv_multipart()
            self._take(seq, payload)

    def take_snapshot(self) -> tuple[int, str]:
        """Take the whole content of the rank's cache; returns its sequence number and epoch."""
        self._replay.send_multipart([b"", b"snapshot", b""])
        while (frames := self._receive(self._replay))[2] != END:
            self.last_seq = int.from_bytes(frames[2], "big") - 1
            self._take(frames[2], frames[3])
        return self.last_seq, frames[3].decode()

    def receive_next(self) -> None:
        """Take the next live message."""
        _, seq, payload = self._receive(self._sub)
        self._take(seq, payload)

    def close(self) -> None:
        self._sub.close(linger=0)
        self._replay.close(linger=0)

    def _receive(self, socket: zmq.Socket[bytes]) -> list[bytes]:
        assert socket.poll(10_000), "silence"
        return socket.recv_multipart()

    def _take(self, seq_frame: bytes, payload: bytes) -> None:
        seq = int.from_bytes(seq_frame, "big")
        if seq <= self.last_seq:
            return
        self.gaps += seq != self.last_seq + 1
        self.last_seq = seq
        _, events, *_ = msgspec.msgpack.decode(payload)
        for event in events:
            self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        if event["type"] == "BlockStored":
            assert event["parent_block_hash"] is None or event["parent_block_hash"] in self.blocks
            assert not self.blocks & set(event["block_hashes"]), "stored twice"
            self.blocks |= set(event["block_hashes"])
            self.stored.append(event)
        elif event["type"] == "BlockRemoved":
            assert set(event["block_hashes"]) <= self.blocks, "removed what was never stored"
            self.blocks -= set(event["block_hashes"])
            self.num_removed += len(event["block_hashes"])
        else:
            assert event["type"] == "AllBlocksCleared"
            self.blocks.clear()


@pytest.fixture
def followers(tiny_graph: ServeGraph) -> Iterator[list[Follower]]:
    descriptor = tiny_graph.get("/server_info")["kv_events"]
    context = zmq.Context()
    followers = [Follower(context, descriptor, rank) for rank in range(descriptor["dp_size"])]
    yield followers
    for follower in followers:
        follower.close()
    context.term()


def some_tokens(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(100, 49_000), k=count)


def test_the_url_alone_leads_to_every_ranks_exact_block_set_through_evictions(
    tiny_graph: ServeGraph, followers: list[Follower]
) -> None:
    num_blocks = tiny_graph.config["applications"][0]["args"]["engine"]["cache"]["num_blocks"]
    # Twice what both caches hold, half of it seen as replay and half live.
    for half in range(2):
        for seed in range(24):
            tiny_graph.complete(some_tokens(100 * half + seed, 350), rank=seed % 2)
        for follower in followers:
            follower.catch_up()

    def caught_up() -> bool:
        for follower in followers:
            follower.catch_up()
        last_seqs = [each["last_seq"] for each in tiny_graph.get("/server_info")["publishers"]]
        return [follower.last_seq for follower in followers] == last_seqs

    wait_until(caught_up, "every follower at its rank's last batch")
    snapshots = tiny_graph.snapshots()
    states = tiny_graph.get("/server_info")["internal_states"]
    for rank, follower in enumerate(followers):
        assert follower.last_seq == snapshots[rank]["seq"]
        assert follower.blocks == set(snapshots[rank]["block_hashes"])
        assert len(follower.blocks) == states[rank]["num_cached_blocks"]
        assert 0 < len(follower.blocks) <= num_blocks
        assert follower.num_removed > 0, "nothing was evicted, so nothing was tested"
        assert follower.gaps == 0
    assert not followers[0].blocks & followers[1].blocks, "the prompts were not the same"


def test_any_client_gets_the_whole_cache_of_a_rank_over_zmq(
    tiny_graph: ServeGraph, followers: list[Follower]
) -> None:
    for seed in range(8):
        tiny_graph.complete(some_tokens(500 + seed, 200), rank=seed % 2)
    truth = tiny_graph.snapshots()
    for rank, follower in enumerate(followers):
        seq, epoch = follower.take_snapshot()
        publisher = tiny_graph.get("/server_info")["publishers"][rank]
        assert epoch == publisher["epoch"]
        assert seq == truth[rank]["seq"] == publisher["last_seq"]
        assert follower.blocks == set(truth[rank]["block_hashes"]) != set()


def test_an_event_arrives_live_with_the_hashes_of_the_prompts_tokens(
    tiny_graph: ServeGraph, followers: list[Follower]
) -> None:
    follower = followers[1]
    follower.catch_up()

    def is_connected() -> bool:
        """A subscription takes effect some time later: until an event arrives live, publish more."""
        tiny_graph.complete(some_tokens(random.randrange(10**9), 40), rank=1, max_tokens=1)
        return bool(follower._sub.poll(100))

    wait_until(is_connected, "anything live")
    follower.catch_up()
    prompt = some_tokens(random.randrange(10**9), 100)
    follower.stored.clear()
    tiny_graph.complete(prompt, rank=1, max_tokens=1)
    follower.receive_next()
    chain = [hashing.wire_hash(digest) for digest in hashing.chain(prompt, follower.block_size)]
    assert len(chain) == 6
    assert [block for event in follower.stored for block in event["block_hashes"]] == chain
    assert [token for event in follower.stored for token in event["token_ids"]] == prompt[:96]
    assert follower.stored[0]["parent_block_hash"] is None
    assert {event["medium"] for event in follower.stored} == {"GPU"}
    assert {event["block_size"] for event in follower.stored} == {follower.block_size}


def test_a_salted_prompt_has_other_hashes(tiny_graph: ServeGraph, followers: list[Follower]) -> None:
    prompt = some_tokens(7, 64)
    tiny_graph.complete(prompt, rank=0, cache_salt="tenant-1", max_tokens=1)
    salted = {hashing.wire_hash(digest) for digest in hashing.chain(prompt, 16, hashing.seed("tenant-1"))}
    plain = {hashing.wire_hash(digest) for digest in hashing.chain(prompt, 16)}

    def caught_up() -> bool:
        followers[0].catch_up()
        return salted <= followers[0].blocks

    wait_until(caught_up, "the salted blocks")
    assert not plain & followers[0].blocks


def test_load_reports_come_at_the_advertised_port(tiny_graph: ServeGraph) -> None:
    descriptor = tiny_graph.get("/server_info")["kv_events"]
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.subscribe(descriptor["load_topic"])
        sub.connect(f"tcp://127.0.0.1:{descriptor['load_endpoint_port_base'] + 1}")
        assert sub.poll(5_000), "at least one a second, even when idle"
        topic, _, payload = sub.recv_multipart()
    name, *fields = msgspec.msgpack.decode(payload)
    assert (topic, name, len(fields)) == (b"load", "LoadStat", 10)
    assert fields[4] == 1, "the rank"
