"""The publisher as seen by bare sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import zmq

from app.events.batch_codec import decode_batch
from app.events.config import KvEventsConfig
from app.events.publishing.publisher import EventPublisher
from app.events.publishing.thread import PublisherCounters
from app.events.schema import (
    AllBlocksCleared,
    BlockStored,
    CacheEvent,
    decode_acknowledged,
    decode_load,
    encode_seq,
)
from app.events.snapshot import CachedBlock
from tests.support.deadlines import wait_until
from tests.support.events.blocks import Blocks, removed, stored
from tests.support.events.ranks import STAT, MakeRank
from tests.support.free_ports import find_free_ports

OpenSocket = Callable[[int], zmq.Socket[bytes]]


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


@pytest.fixture
def open_socket(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[OpenSocket]:
    opened: list[zmq.Socket[bytes]] = []

    def open_one(kind: int) -> zmq.Socket[bytes]:
        opened.append(context.socket(kind))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close(linger=0)


def subscribe(open_socket: OpenSocket, port: int, topic: bytes = b"") -> zmq.Socket[bytes]:
    sub = open_socket(zmq.SUB)
    sub.setsockopt(zmq.RCVTIMEO, 5000)
    sub.subscribe(topic)
    sub.connect(f"tcp://127.0.0.1:{port}")
    return sub


def first_message(sub: zmq.Socket[bytes], publish: Callable[[], object]) -> list[bytes]:
    """The first message that arrives; published again and again, as a subscription takes some time."""

    def message() -> list[bytes]:
        publish()
        return sub.recv_multipart() if sub.poll(20) else []

    return wait_until(message, "a message", 10)


def read_replay(open_socket: OpenSocket, port: int, start_seq: int) -> dict[int, list[CacheEvent]]:
    dealer = open_socket(zmq.DEALER)
    dealer.setsockopt(zmq.RCVTIMEO, 5000)
    dealer.connect(f"tcp://127.0.0.1:{port}")
    dealer.send_multipart([b"", encode_seq(start_seq)])
    batches: dict[int, list[CacheEvent]] = {}
    while (reply := dealer.recv_multipart())[2] != b"\xff" * 8:
        batches[int.from_bytes(reply[2], "big")] = decode_batch(reply[3]).events
    return batches


@pytest.mark.parametrize("format", ["map", "array"])
def test_a_batch_is_topic_seq_and_payload(make_rank: MakeRank, open_socket: OpenSocket, format: str) -> None:
    rank = make_rank(topic="kv", format=format)
    sub = subscribe(open_socket, rank.address.event_port, b"kv")
    first_message(sub, lambda: rank.step(stored(7)))
    rank.step(stored(7))
    topic, seq, payload = sub.recv_multipart()
    batch = decode_batch(payload)
    assert topic == b"kv"
    assert 1 <= int.from_bytes(seq, "big") <= rank.publisher.last_seq
    assert (batch.events, batch.dp_rank) == ([stored(7)], 0)
    assert abs(batch.ts - time.time()) < 60
    assert (b"type" in payload) == (format == "map")


def test_batch_0_says_that_the_cache_is_empty(make_rank: MakeRank, open_socket: OpenSocket) -> None:
    port = find_free_ports(8)
    rank = make_rank(endpoint=f"tcp://127.0.0.1:{port}", replay_endpoint=f"tcp://127.0.0.1:{port + 4}")
    assert rank.publisher.last_seq == 0
    sub = subscribe(open_socket, port)
    first_message(sub, lambda: rank.step(stored(1)))
    assert read_replay(open_socket, port + 4, 0)[0] == [AllBlocksCleared()]


def test_a_step_without_events_is_no_batch(make_rank: MakeRank) -> None:
    publisher = make_rank().publisher
    publisher.publish([])
    assert publisher.last_seq == 0


def test_the_sequence_number_is_given_out_at_once(make_rank: MakeRank) -> None:
    rank = make_rank()
    rank.step(stored(1))
    rank.step(stored(2))
    assert rank.publisher.last_seq == 2
    blocks = [CachedBlock(1, None), CachedBlock(2, 1)]
    content = rank.publisher.content(blocks)
    assert (content.epoch, content.seq, content.blocks) == (rank.publisher.epoch, 2, blocks)


def test_a_plain_subscriber_rebuilds_the_cache_from_replay_and_events(
    make_rank: MakeRank, open_socket: OpenSocket
) -> None:
    port = find_free_ports(8)
    rank = make_rank(endpoint=f"tcp://127.0.0.1:{port}", replay_endpoint=f"tcp://127.0.0.1:{port + 4}")
    for number in range(50):
        rank.step(stored(number, -number), *([removed(number - 3)] if number > 3 else []))
    sub = subscribe(open_socket, port)
    batches: dict[int, list[CacheEvent]] = {}
    _, seq_frame, payload = first_message(sub, lambda: rank.step(stored(100)))
    batches[int.from_bytes(seq_frame, "big")] = decode_batch(payload).events
    for number in range(20):
        rank.step(removed(-number), stored(200 + number))
    while max(batches) < rank.publisher.last_seq:
        _, seq_frame, payload = sub.recv_multipart()
        batches[int.from_bytes(seq_frame, "big")] = decode_batch(payload).events
    batches |= read_replay(open_socket, port + 4, 0)
    assert sorted(batches) == list(range(rank.publisher.last_seq + 1))
    rebuilt = Blocks()
    for seq in sorted(batches):
        rebuilt.apply(batches[seq])
    assert rebuilt.hashes == rank.truth.hashes


def test_publishing_into_a_full_queue_drops_counts_and_leaves_a_gap(
    make_rank: MakeRank, open_socket: OpenSocket
) -> None:
    port = find_free_ports(8)
    rank = make_rank(
        endpoint=f"tcp://127.0.0.1:{port}",
        replay_endpoint=f"tcp://127.0.0.1:{port + 4}",
        max_queue_size=1,
    )
    publisher = rank.publisher
    big = BlockStored(list(range(20_000)), None, list(range(20_000)), 1)
    while publisher.counters.dropped_batches == 0:
        publisher.publish([big])
    sub = subscribe(open_socket, port)
    first_message(sub, lambda: publisher.publish([AllBlocksCleared()]))
    publisher.close()
    counters = publisher.counters
    assert counters.published_batches + counters.dropped_batches == publisher.last_seq + 1
    assert publisher.info("").state.dropped_batches == counters.dropped_batches


def test_publishing_never_waits_for_a_subscriber_that_does_not_read(
    make_rank: MakeRank, open_socket: OpenSocket
) -> None:
    rank = make_rank(hwm=1, max_queue_size=10)
    sub = open_socket(zmq.SUB)
    sub.setsockopt(zmq.RCVHWM, 1)
    sub.subscribe(b"")
    sub.connect(f"tcp://127.0.0.1:{rank.address.event_port}")
    first_message(sub, lambda: rank.publisher.publish([AllBlocksCleared()]))
    big = BlockStored(list(range(10_000)), None, list(range(10_000)), 1)
    slowest = 0.0
    for _ in range(300):
        started = time.perf_counter()
        rank.publisher.publish([big])
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < 1.0
    started = time.monotonic()
    rank.publisher.close()
    assert time.monotonic() - started < 5


def test_a_subscriber_whose_queue_is_full_is_noticed_and_costs_the_others_nothing(
    make_rank: MakeRank, open_socket: OpenSocket, caplog: pytest.LogCaptureFixture
) -> None:
    rank = make_rank(hwm=50)
    port = rank.address.event_port
    stuck = open_socket(zmq.SUB)
    stuck.setsockopt(zmq.RCVHWM, 1)
    stuck.subscribe(b"")
    stuck.connect(f"tcp://127.0.0.1:{port}")
    reader = subscribe(open_socket, port)
    first_message(reader, lambda: rank.step(stored(1)))
    first_message(stuck, lambda: rank.step(stored(1)))
    received_seq = -1
    while rank.publisher.counters.overflows == 0:
        rank.step(stored(*range(2_000)))
        while received_seq < rank.seq:
            received_seq = int.from_bytes(reader.recv_multipart()[1], "big")
        assert rank.seq < 50_000, "no queue is ever full"
    assert rank.info.state.overflows > 0
    assert rank.info.state.dropped_batches == 0
    assert "a subscriber reads too slowly" in caplog.text


@pytest.mark.parametrize("format", ["map", "array"])
def test_prompts_can_be_kept_out_of_the_stream_and_of_replays(
    make_rank: MakeRank, open_socket: OpenSocket, format: str
) -> None:
    replay_port = find_free_ports(1)
    rank = make_rank(token_ids=False, format=format, replay_endpoint=f"tcp://127.0.0.1:{replay_port}")
    sub = subscribe(open_socket, rank.address.event_port)
    event = BlockStored([7, 8], 6, [501, 502, 503, 504], 2, medium="GPU")
    first_message(sub, lambda: rank.step(event))  # this may be batch 0
    rank.step(event)
    without = [BlockStored([7, 8], 6, [], 2, medium="GPU")]
    assert decode_batch(sub.recv_multipart()[2]).events == without
    assert read_replay(open_socket, replay_port, 1)[1] == without
    assert event.token_ids == [501, 502, 503, 504], "the engine's own event is not touched"


def test_a_batch_that_cant_be_encoded_is_counted_and_the_next_one_sent(
    make_rank: MakeRank, open_socket: OpenSocket
) -> None:
    rank = make_rank()
    sub = subscribe(open_socket, rank.address.event_port)
    first_message(sub, lambda: rank.step(stored(1)))
    rank.publisher.publish([removed(*range(65_537))])
    rank.publisher.publish([stored(2)])
    while decode_batch(sub.recv_multipart()[2]).events != [stored(2)]:
        pass
    assert rank.publisher.counters.failed_batches == 1
    assert rank.info.state.dropped_batches == 1


def test_closing_sends_what_is_queued(make_rank: MakeRank, open_socket: OpenSocket) -> None:
    rank = make_rank()
    sub = subscribe(open_socket, rank.address.event_port)
    first_message(sub, lambda: rank.step(stored(1)))
    for number in range(500):
        rank.step(stored(number))
    rank.publisher.close()
    seq = 0
    while seq < rank.publisher.last_seq:
        seq = int.from_bytes(sub.recv_multipart()[1], "big")


def test_closing_ends_the_threads_and_can_be_repeated(make_rank: MakeRank) -> None:
    before = set(threading.enumerate())
    publisher = make_rank(replay_endpoint=f"tcp://127.0.0.1:{find_free_ports(1)}").publisher
    assert len(set(threading.enumerate()) - before) == 2
    publisher.close()
    publisher.close()
    assert set(threading.enumerate()) <= before
    publisher.publish([stored(1)])
    assert publisher.counters.dropped_batches == 1
    assert publisher.info("").state.status == "disabled"


def test_closing_what_was_never_started_does_nothing() -> None:
    publisher = EventPublisher(KvEventsConfig(publisher="zmq"), dp_rank=0, dp_size=1, block_size=1)
    publisher.close()
    assert publisher.info("").state.status == "disabled"


def test_load_and_acknowledgements_have_their_own_port_and_topics(
    make_rank: MakeRank, open_socket: OpenSocket
) -> None:
    publisher = make_rank(load_topic="busy").publisher
    info = publisher.info("")
    assert info.address.load_port == info.address.event_port + 1024
    sub = subscribe(open_socket, info.address.load_port)
    topic, seq, payload = first_message(sub, lambda: publisher.publish_load(STAT))
    assert (topic, decode_load(payload)) == (b"busy", STAT)
    publisher.publish_load(STAT, ["a", "b"])
    while (frames := sub.recv_multipart())[0] == b"busy":
        assert int.from_bytes(frames[1], "big") > int.from_bytes(seq, "big")
    topic, seq, payload = frames
    assert (topic, seq) == (b"ack", encode_seq(0))
    assert (decode_acknowledged(payload).dp_rank, decode_acknowledged(payload).request_ids) == (0, ["a", "b"])


def test_load_reports_can_be_switched_off_and_count_as_nothing_dropped(make_rank: MakeRank) -> None:
    publisher = make_rank(load_reports=False).publisher
    publisher.publish_load(STAT, ["a"])
    info = publisher.info("")
    assert (info.address.load_port, info.address.load_topic) == (None, None)
    publisher.close()  # sends what is queued
    assert publisher.counters == PublisherCounters(published_batches=1)


def test_the_description_is_what_was_bound(make_rank: MakeRank) -> None:
    base = find_free_ports(12)
    publisher = make_rank(
        {"dp_rank": 1, "dp_size": 2, "block_size": 16},
        endpoint=f"tcp://*:{base}",
        replay_endpoint=f"tcp://*:{base + 4}",
        topic="kv",
    ).publisher
    info = publisher.info("10.1.2.3")
    assert (info.address.rank, info.address.host, info.address.block_size, info.address.topic) == (
        1,
        "10.1.2.3",
        16,
        "kv",
    )
    assert (info.address.event_port, info.address.replay_port, info.address.load_port) == (
        base + 1,
        base + 5,
        base + 9,
    )
    assert (info.state.status, info.state.epoch, info.state.last_seq) == ("publishing", publisher.epoch, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "*"])
def test_ports_that_the_system_chose_are_described(
    make_rank: MakeRank, open_socket: OpenSocket, host: str
) -> None:
    endpoint = f"tcp://{host}:0"
    ranks = [
        make_rank({"dp_rank": rank, "dp_size": 2}, endpoint=endpoint, replay_endpoint=endpoint)
        for rank in range(2)
    ]
    ports = set()
    for rank in ranks:
        address = rank.publisher.info("127.0.0.1").address
        assert address.host == "127.0.0.1"
        ports |= {address.event_port, address.replay_port, address.load_port}
        sub = subscribe(open_socket, address.event_port)
        first_message(sub, partial(rank.step, stored(1)))
        assert address.replay_port is not None
        assert read_replay(open_socket, address.replay_port, 0)[0] == [AllBlocksCleared()]
        assert address.load_port is not None
        sub = subscribe(open_socket, address.load_port)
        first_message(sub, partial(rank.publisher.publish_load, STAT))
    assert len(ports) == 6
    assert all(ports)


def test_nothing_is_described_as_dialable_before_the_system_has_chosen() -> None:
    config = KvEventsConfig(publisher="zmq", endpoint="tcp://*:0")
    info = EventPublisher(config, dp_rank=0, dp_size=1, block_size=1).info("10.1.2.3")
    assert (info.is_publishing, info.address.event_port) == (False, 0)


def test_an_interfaces_name_is_described_by_its_address(make_rank: MakeRank) -> None:
    address = make_rank(endpoint=f"tcp://lo:{find_free_ports(4)}").publisher.info("10.1.2.3").address
    assert address.host == "127.0.0.1"
    assert address.load_port == address.event_port + 1024


def test_ports_at_another_host_than_the_events_are_not_described(make_rank: MakeRank) -> None:
    base = find_free_ports(12)
    publisher = make_rank(
        endpoint=f"tcp://*:{base}",
        replay_endpoint=f"tcp://127.0.0.1:{base + 2}",
        load_publish_endpoint=f"tcp://127.0.0.1:{base + 4}",
    ).publisher
    elsewhere, here = (publisher.info(host).address for host in ("10.1.2.3", "127.0.0.1"))
    assert (elsewhere.replay_port, elsewhere.load_port, elsewhere.load_topic) == (None, None, None)
    assert (here.replay_port, here.load_port, here.load_topic) == (base + 2, base + 4, "load")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 on this machine")
def test_ipv6_is_bound(make_rank: MakeRank, open_socket: OpenSocket) -> None:
    port = find_free_ports(4)
    rank = make_rank(endpoint=f"tcp://[::]:{port}")
    assert rank.publisher.info("fe80::1").address.host == "[fe80::1]"
    sub = open_socket(zmq.SUB)
    sub.setsockopt(zmq.IPV6, 1)
    sub.subscribe(b"")
    sub.connect(f"tcp://[::1]:{port}")
    assert first_message(sub, lambda: rank.step(stored(1)))


def test_inproc_reaches_subscribers_of_the_same_context(
    context: zmq.Context[zmq.Socket[bytes]], open_socket: OpenSocket
) -> None:
    config = KvEventsConfig(publisher="zmq", endpoint="inproc://events")
    publisher = EventPublisher(config, dp_rank=1, dp_size=2, block_size=1, context=context)
    publisher.start()
    sub = open_socket(zmq.SUB)
    sub.subscribe(b"")
    sub.connect("inproc://events_dp1")
    assert decode_batch(first_message(sub, lambda: publisher.publish([stored(1)]))[2]).dp_rank == 1
    assert publisher.info("").state.status == "disabled"
    publisher.close()


def test_a_connecting_publisher_reaches_a_collector_and_no_client_is_asked_to_dial_it(
    make_rank: MakeRank, open_socket: OpenSocket
) -> None:
    collector = open_socket(zmq.SUB)
    collector.subscribe(b"")
    port = collector.bind_to_random_port("tcp://127.0.0.1")
    rank = make_rank(endpoint=f"tcp://127.0.0.1:{port}", bind="connect")
    assert first_message(collector, lambda: rank.step(stored(1)))
    assert rank.info.state.status == "disabled"
