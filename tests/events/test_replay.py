"""The replay server as seen by bare DEALER sockets, and the subscriber's request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
import zmq.asyncio

from app.errors import WireError
from app.events.replay import ReplayBuffer, ReplayServer, fetch_replay
from app.events.schema import AllBlocksCleared, EventBatch, encode_batch, encode_seq

END = b"\xff" * 8


class Server:
    """A replay server with `count` batches of which it keeps the last `capacity`."""

    def __init__(self, count: int, capacity: int, topic: bytes | None, size: int, stall_timeout_s: float):
        self.context = zmq.Context()
        self.dealers: list[zmq.Socket[bytes]] = []
        router = self.context.socket(zmq.ROUTER)
        ReplayServer.prepare(router)
        self.address = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
        buffer = ReplayBuffer(capacity)
        for seq in range(count):
            buffer.append(seq, self.payload(seq, size))
        self.server = ReplayServer(router, buffer, topic, stall_timeout_s=stall_timeout_s)
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
    [[encode_seq(0)], [b"", b"short"], [b"x", encode_seq(0)], [b"", encode_seq(0), b""], [b"", b""]],
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


def test_a_peer_that_does_not_read_holds_up_nobody_and_is_given_up(serve: Any) -> None:
    # 60 MB, far beyond what the sockets' buffers take.
    server = serve(count=600, size=100_000, stall_timeout_s=0.3)
    lazy = server.dealer(b"", encode_seq(0), receive_hwm=1)
    assert lazy.poll(5000)
    eager = server.dealer(b"", encode_seq(0))
    started = time.monotonic()
    for seq in range(600):
        assert eager.recv_multipart()[2] == encode_seq(seq)
    assert eager.recv_multipart() == [b"", b"", END, b""]
    assert time.monotonic() - started < 5
    deadline = time.monotonic() + 5
    while server.server.abandoned == 0 and time.monotonic() < deadline:
        eager.send_multipart([b"", encode_seq(600)])
        eager.recv_multipart()
    assert server.server.abandoned == 1


def test_a_peer_that_leaves_is_forgotten(serve: Any) -> None:
    server = serve(count=600, size=100_000)
    gone = server.dealer(b"", encode_seq(0), receive_hwm=1)
    assert gone.poll(5000)
    gone.close(linger=0)
    assert len(read_until(server.dealer(b"", encode_seq(599)), [b"", b"", END, b""])) == 1


@pytest.mark.parametrize("topic", [b"kv", b"", None])
async def test_the_missing_batches_are_fetched_in_either_framing(serve: Any, topic: bytes | None) -> None:
    server = serve(topic=topic)
    with zmq.asyncio.Context() as context:
        batches = await fetch_replay(context, server.address, 3, 6)
    assert [batch.ts for batch in batches] == [3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("first", "last", "why"),
    [
        (3, 9, "batch 5 where batch 3"),
        (8, 11, "its end where batch 10"),
        (0, 2**64 - 1, "at most"),
    ],
)
async def test_what_is_not_all_there_is_an_error(serve: Any, first: int, last: int, why: str) -> None:
    server = serve(capacity=5)
    with zmq.asyncio.Context() as context, pytest.raises(WireError, match=why):
        await fetch_replay(context, server.address, first, last)


async def test_a_server_that_does_not_answer_times_out() -> None:
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as silent:
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(TimeoutError):
            await fetch_replay(context, f"tcp://127.0.0.1:{port}", 0, 1, timeout_s=0.05)
