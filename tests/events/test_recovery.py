"""The recovery server as seen by bare DEALER sockets, and the subscriber's client of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
import zmq
import zmq.asyncio

from app.errors import EngineFailedError, WireError
from app.events.batch_codec import decode_batch, encode_batch
from app.events.following.recovery_client import RecoveryClient
from app.events.publishing.recovery_server import RecoveryServer
from app.events.replay import Framing, ReplayBuffer, parse_request
from app.events.schema import AllBlocksCleared, BlockStored, EventBatch, encode_seq
from app.events.snapshot import BLOCKS_PER_PAYLOAD, CacheContent, CachedBlock, snapshot_payloads
from tests.support.snapshots import parents_in

END = b"\xff" * 8


class Server:
    """A recovery server with `count` batches of which it keeps the last `capacity`."""

    def __init__(self, count: int, capacity: int, topic: bytes | None, size: int, stall_timeout_s: float):
        self.context = zmq.Context()
        self.dealers: list[zmq.Socket[bytes]] = []
        router = self.context.socket(zmq.ROUTER)
        RecoveryServer.prepare(router)
        self.address = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
        buffer = ReplayBuffer(capacity)
        for seq in range(count):
            buffer.append(seq, self.payload(seq, size))
        payloads = partial(snapshot_payloads, dp_rank=0, block_size=16)
        self.server = RecoveryServer(
            router, buffer, Framing(topic), payloads, stall_timeout_s=stall_timeout_s
        )
        self.server.start()

    @staticmethod
    def payload(seq: int, size: int = 0) -> bytes:
        return encode_batch(EventBatch(float(seq), [AllBlocksCleared()], 0)) + bytes(size)

    def dealer(self, *request: bytes, receive_hwm: int = 1000) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 5000)
        socket.setsockopt(zmq.RCVHWM, receive_hwm)
        socket.connect(self.address)
        socket.send_multipart(request)
        self.dealers.append(socket)
        return socket

    def close(self) -> None:
        self.server.close()
        for socket in self.dealers:
            socket.close(linger=0)
        self.context.term()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(
        count: int = 10,
        capacity: int = 1000,
        topic: bytes | None = b"kv",
        size: int = 0,
        stall_timeout_s: float = 5.0,
    ) -> Server:
        servers.append(Server(count, capacity, topic, size, stall_timeout_s))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def read_until(socket: zmq.Socket[bytes], end: list[bytes]) -> list[list[bytes]]:
    replies = []
    while (reply := socket.recv_multipart()) != end:
        replies.append(reply)
    return replies


def test_the_reply_is_framed_as_vllm_and_sglang_frame_it_now(serve: Any) -> None:
    server = serve()
    replies = read_until(server.dealer(b"", encode_seq(7)), [b"", b"", END, b""])
    assert replies == [[b"", b"kv", encode_seq(seq), server.payload(seq)] for seq in (7, 8, 9)]


def test_the_plain_reply_is_framed_as_sglang_0_5_13_frames_it(serve: Any) -> None:
    server = serve(topic=None)
    replies = read_until(server.dealer(b"", encode_seq(8)), [b"", END, b""])
    assert replies == [[b"", encode_seq(seq), server.payload(seq)] for seq in (8, 9)]


@pytest.mark.parametrize("start", [10, 2**64 - 1])
def test_nothing_to_replay_is_just_the_end(serve: Any, start: int) -> None:
    assert serve().dealer(b"", encode_seq(start)).recv_multipart() == [b"", b"", END, b""]


def test_what_left_the_buffer_is_not_in_the_reply(serve: Any) -> None:
    replies = read_until(serve(capacity=3).dealer(b"", encode_seq(0)), [b"", b"", END, b""])
    assert [reply[2] for reply in replies] == [encode_seq(seq) for seq in (7, 8, 9)]


def test_two_requests_of_one_peer_are_answered_one_after_the_other(serve: Any) -> None:
    server = serve(count=500)
    socket = server.dealer(b"", encode_seq(0))
    socket.send_multipart([b"", encode_seq(498)])
    assert len(read_until(socket, [b"", b"", END, b""])) == 500
    assert len(read_until(socket, [b"", b"", END, b""])) == 2


@pytest.mark.parametrize(
    "request_frames",
    [
        [encode_seq(0)],
        [b"", b"short"],
        [b"x", encode_seq(0)],
        [b"", encode_seq(0), b""],
        [b"", b""],
        [b"", b"snapshot", b"x"],
    ],
    ids=str,
)
def test_another_shape_is_refused_and_the_next_request_served(
    serve: Any, request_frames: list[bytes]
) -> None:
    server = serve()
    socket = server.dealer(*request_frames)
    socket.send_multipart([b"", encode_seq(9)])
    assert socket.recv_multipart()[2] == encode_seq(9)
    assert server.server.refused == 1


def test_the_error_of_a_request_of_many_frames_is_short() -> None:
    with pytest.raises(WireError, match="request of 100000 frames, the first of") as caught:
        parse_request([b""] * 100_000)
    assert len(str(caught.value)) < 200


def test_a_peer_that_does_not_read_holds_up_nobody_and_is_given_up(serve: Any) -> None:
    # 90 MB, far beyond what the sockets' buffers take.
    server = serve(count=900, size=100_000, stall_timeout_s=0.3)
    lazy = server.dealer(b"", encode_seq(0), receive_hwm=1)
    assert lazy.poll(5000)
    eager = server.dealer(b"", encode_seq(0))
    started = time.monotonic()
    for seq in range(900):
        assert eager.recv_multipart()[2] == encode_seq(seq)
    assert eager.recv_multipart() == [b"", b"", END, b""]
    assert time.monotonic() - started < 5
    deadline = time.monotonic() + 5
    while server.server.abandoned == 0 and time.monotonic() < deadline:
        eager.send_multipart([b"", encode_seq(900)])
        eager.recv_multipart()
    assert server.server.abandoned == 1


def test_a_peer_that_leaves_is_forgotten(serve: Any) -> None:
    server = serve(count=900, size=100_000)
    gone = server.dealer(b"", encode_seq(0), receive_hwm=1)
    assert gone.poll(5000)
    gone.close(linger=0)
    assert len(read_until(server.dealer(b"", encode_seq(899)), [b"", b"", END, b""])) == 1


def test_a_peer_that_asks_without_reading_takes_nobodys_turn(serve: Any) -> None:
    server = serve(count=900, size=100_000)
    greedy = server.dealer(b"", encode_seq(0), receive_hwm=1)
    for _ in range(200):
        greedy.send_multipart([b"", encode_seq(0)])
    assert greedy.poll(5000)
    deadline = time.monotonic() + 5
    while server.server.refused == 0:
        assert time.monotonic() < deadline, "nothing is refused"
    started = time.monotonic()
    assert len(read_until(server.dealer(b"", encode_seq(899)), [b"", b"", END, b""])) == 1
    assert time.monotonic() - started < 2
    assert server.server.abandoned == 0


SNAPSHOT_REQUEST = (b"", b"snapshot", b"")


def some_chains(*lengths: int) -> list[CachedBlock]:
    """Chains of blocks, each beginning a prompt, hashes counted up from 1."""
    blocks: list[CachedBlock] = []
    for length in lengths:
        parent = None
        for _ in range(length):
            blocks.append(CachedBlock(len(blocks) + 1, parent))
            parent = blocks[-1].hash
    return blocks


def answered(blocks: Sequence[CachedBlock], seq: int = 5) -> Callable[[], Future[CacheContent]]:
    """An engine that answers at once."""

    def take() -> Future[CacheContent]:
        future: Future[CacheContent] = Future()
        future.set_result(CacheContent("an-epoch", seq, blocks))
        return future

    return take


@pytest.mark.parametrize("topic", [b"kv", None])
def test_a_snapshot_is_framed_like_a_replay_of_batches_that_fill_the_cache(
    serve: Any, topic: bytes | None
) -> None:
    server = serve(topic=topic)
    server.server.take_content = answered(some_chains(3, 2))
    prefix = [b""] if topic is None else [b"", topic]
    socket = server.dealer(*SNAPSHOT_REQUEST)
    *head, payload = socket.recv_multipart()
    assert head == [*prefix, encode_seq(5)]
    assert decode_batch(payload).events == [
        AllBlocksCleared(),
        BlockStored([1, 2, 3], None, [], 16, medium="GPU"),
        BlockStored([4, 5], None, [], 16, medium="GPU"),
    ]
    assert socket.recv_multipart() == [*([b""] * len(prefix)), END, b"an-epoch"]


@pytest.mark.parametrize("topic", [b"kv", b"", None])
@pytest.mark.parametrize("lengths", [(), (1,), (3, 1, 1, 40), (BLOCKS_PER_PAYLOAD + 1,), (1,) * 20_000])
async def test_a_snapshot_arrives_whole_with_every_parent(
    serve: Any, topic: bytes | None, lengths: tuple[int, ...]
) -> None:
    server = serve(topic=topic)
    blocks = some_chains(*lengths)
    server.server.take_content = answered(blocks)
    with zmq.asyncio.Context() as context:
        client = RecoveryClient(context, server.address)
        snapshot = await client.snapshot()
        client.close()
    assert (snapshot.epoch, snapshot.seq) == ("an-epoch", 5)
    assert list(parents_in(snapshot).items()) == [(block.hash, block.parent_hash) for block in blocks]
    assert all(len(payload) < 2**20 for payload in snapshot.payloads)


def test_sequences_that_grew_side_by_side_are_told_one_after_the_other_each_after_its_parents() -> None:
    # 1-2-3-4 and 11-12-13 in turn, 21-22 forks off 2, 31 off an absent 30.
    blocks = [(1, None), (11, None), (2, 1), (12, 11), (3, 2), (21, 2), (13, 12), (22, 21), (4, 3), (31, 30)]
    (payload,) = snapshot_payloads([CachedBlock(*each) for each in blocks], dp_rank=0, block_size=16)
    told = [(each.block_hashes, each.parent_block_hash) for each in decode_batch(payload).events[1:]]
    assert told == [([1, 2, 3, 4], None), ([11, 12, 13], None), ([21, 22], 2), ([31], 30)]


def test_a_snapshot_is_made_piece_by_piece() -> None:
    """So that a replay needn't wait for the whole of it."""
    num_taken = 0

    def blocks() -> Iterator[CachedBlock]:
        nonlocal num_taken
        for block in some_chains(*[100] * 1_000):
            num_taken += 1
            yield block

    payloads = snapshot_payloads(blocks(), dp_rank=0, block_size=16)
    next(payloads)
    assert num_taken <= 4 * BLOCKS_PER_PAYLOAD
    assert len(list(payloads)) >= 100_000 // (2 * BLOCKS_PER_PAYLOAD)


async def test_whoever_asks_while_the_engine_is_busy_shares_its_answer_and_a_replay_does_not_wait(
    serve: Any,
) -> None:
    server = serve()
    asked: list[Future[CacheContent]] = []

    def take() -> Future[CacheContent]:
        asked.append(Future())
        return asked[-1]

    server.server.take_content = take
    waiting = [server.dealer(*SNAPSHOT_REQUEST) for _ in range(3)]
    deadline = time.monotonic() + 10
    while len(server.server._transfers) < 3:
        assert time.monotonic() < deadline, "the requests have not arrived"
    replay = server.dealer(b"", encode_seq(9))
    assert len(read_until(replay, [b"", b"", END, b""])) == 1
    assert not any(socket.poll(0) for socket in waiting)
    asked[0].set_result(CacheContent("an-epoch", 5, some_chains(1)))
    for socket in waiting:
        assert len(read_until(socket, [b"", b"", END, b"an-epoch"])) == 1
    late = server.dealer(*SNAPSHOT_REQUEST)
    while len(asked) < 2:
        assert time.monotonic() < deadline, "the engine is not asked again"
    asked[1].set_result(CacheContent("an-epoch", 6, some_chains(2)))
    (reply,) = read_until(late, [b"", b"", END, b"an-epoch"])
    assert reply[2] == encode_seq(6)
    assert len(asked) == 2


def failing() -> Future[CacheContent]:
    raise EngineFailedError("the engine has stopped")


def failed() -> Future[CacheContent]:
    future: Future[CacheContent] = Future()
    future.set_exception(EngineFailedError("the engine has stopped"))
    return future


@pytest.mark.parametrize("take_content", [None, failing, failed])
async def test_without_a_snapshot_to_give_the_answer_is_its_end(serve: Any, take_content: Any) -> None:
    server = serve()
    server.server.take_content = take_content
    assert server.dealer(*SNAPSHOT_REQUEST).recv_multipart() == [b"", b"", END, b""]
    with zmq.asyncio.Context() as context:
        client = RecoveryClient(context, server.address)
        with pytest.raises(WireError, match="no snapshot"):
            await client.snapshot()
        client.close()


@pytest.mark.parametrize("topic", [b"kv", b"", None])
async def test_the_missing_batches_are_fetched_in_either_framing(serve: Any, topic: bytes | None) -> None:
    server = serve(topic=topic)
    with zmq.asyncio.Context() as context:
        client = RecoveryClient(context, server.address)
        batches: list[tuple[int, float]] = []
        for first in (3, 8, 10):
            await client.replay(first, lambda seq, payload: batches.append((seq, decode_batch(payload).ts)))
        client.close()
    assert batches == [(seq, float(seq)) for first in (3, 8, 10) for seq in range(first, 10)]


async def test_an_answer_cut_short_is_not_taken_for_the_next(serve: Any) -> None:
    server = serve()

    def refuse(seq: int, payload: bytes) -> None:
        raise WireError(f"batch {seq} is of no use")

    with zmq.asyncio.Context() as context:
        client = RecoveryClient(context, server.address)
        with pytest.raises(WireError, match="batch 3 is of no use"):
            await client.replay(3, refuse)
        seqs: list[int] = []
        await client.replay(8, lambda seq, payload: seqs.append(seq))
        client.close()
    assert seqs == [8, 9]


async def test_a_server_that_does_not_answer_times_out() -> None:
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as silent:
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        client = RecoveryClient(context, f"tcp://127.0.0.1:{port}", timeout_s=0.05)
        with pytest.raises(TimeoutError):
            await client.replay(0, lambda seq, payload: None)
        with pytest.raises(TimeoutError):
            await client.snapshot(timeout_s=0.05)
        client.close()
