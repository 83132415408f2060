"""The recovery server as seen by bare DEALER sockets."""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import pytest
import zmq
import zmq.asyncio

from app.errors import EngineFailedError, WireError
from app.events.batch_codec import decode_batch
from app.events.following.recovery_client import RecoveryClient
from app.events.schema import AllBlocksCleared, BlockStored, encode_seq
from app.events.snapshot import CacheContent
from tests.support.deadlines import wait_until
from tests.support.events.blocks import some_chains
from tests.support.events.recovery import Serve, answered

END = b"\xff" * 8


def read_until(socket: zmq.Socket[bytes], end: list[bytes]) -> list[list[bytes]]:
    replies = []
    while (reply := socket.recv_multipart()) != end:
        replies.append(reply)
    return replies


def test_the_reply_is_framed_as_vllm_and_sglang_frame_it_now(serve: Serve) -> None:
    server = serve()
    replies = read_until(server.dealer(b"", encode_seq(7)), [b"", b"", END, b""])
    assert replies == [[b"", b"kv", encode_seq(seq), server.payload(seq)] for seq in (7, 8, 9)]


def test_the_plain_reply_is_framed_as_sglang_0_5_13_frames_it(serve: Serve) -> None:
    server = serve(topic=None)
    replies = read_until(server.dealer(b"", encode_seq(8)), [b"", END, b""])
    assert replies == [[b"", encode_seq(seq), server.payload(seq)] for seq in (8, 9)]


@pytest.mark.parametrize("start", [10, 2**64 - 1])
def test_nothing_to_replay_is_just_the_end(serve: Serve, start: int) -> None:
    assert serve().dealer(b"", encode_seq(start)).recv_multipart() == [b"", b"", END, b""]


def test_what_left_the_buffer_is_not_in_the_reply(serve: Serve) -> None:
    replies = read_until(serve(capacity=3).dealer(b"", encode_seq(0)), [b"", b"", END, b""])
    assert [reply[2] for reply in replies] == [encode_seq(seq) for seq in (7, 8, 9)]


def test_two_requests_of_one_peer_are_answered_one_after_the_other(serve: Serve) -> None:
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
    serve: Serve, request_frames: list[bytes]
) -> None:
    server = serve()
    socket = server.dealer(*request_frames)
    socket.send_multipart([b"", encode_seq(9)])
    assert socket.recv_multipart()[2] == encode_seq(9)
    assert server.server.refused == 1


def test_a_peer_that_does_not_read_holds_up_no_other_and_is_given_up(serve: Serve) -> None:
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

    def is_abandoned() -> bool:
        eager.send_multipart([b"", encode_seq(900)])
        eager.recv_multipart()
        return server.server.abandoned > 0

    wait_until(is_abandoned, "the peer that doesn't read given up", 5)
    assert server.server.abandoned == 1


def test_a_peer_that_leaves_is_forgotten(serve: Serve) -> None:
    server = serve(count=900, size=100_000)
    gone = server.dealer(b"", encode_seq(0), receive_hwm=1)
    assert gone.poll(5000)
    gone.close(linger=0)
    assert len(read_until(server.dealer(b"", encode_seq(899)), [b"", b"", END, b""])) == 1


def test_a_peer_that_asks_without_reading_takes_no_turn_of_another(serve: Serve) -> None:
    server = serve(count=900, size=100_000)
    greedy = server.dealer(b"", encode_seq(0), receive_hwm=1)
    for _ in range(200):
        greedy.send_multipart([b"", encode_seq(0)])
    assert greedy.poll(5000)
    wait_until(lambda: server.server.refused, "a refusal", 5)
    started = time.monotonic()
    assert len(read_until(server.dealer(b"", encode_seq(899)), [b"", b"", END, b""])) == 1
    assert time.monotonic() - started < 2
    assert server.server.abandoned == 0


SNAPSHOT_REQUEST = (b"", b"snapshot", b"")


@pytest.mark.parametrize("topic", [b"kv", None])
def test_a_snapshot_is_framed_like_a_replay_of_batches_that_fill_the_cache(
    serve: Serve, topic: bytes | None
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


async def test_requests_while_the_engine_is_busy_share_its_answer_and_a_replay_does_not_wait(
    serve: Serve,
) -> None:
    server = serve()
    asked: list[Future[CacheContent]] = []

    def take() -> Future[CacheContent]:
        asked.append(Future())
        return asked[-1]

    server.server.take_content = take
    waiting = [server.dealer(*SNAPSHOT_REQUEST) for _ in range(3)]
    wait_until(lambda: server.server.num_pending >= 3, "the requests", 5)
    replay = server.dealer(b"", encode_seq(9))
    assert len(read_until(replay, [b"", b"", END, b""])) == 1
    assert not any(socket.poll(0) for socket in waiting)
    asked[0].set_result(CacheContent("an-epoch", 5, some_chains(1)))
    for socket in waiting:
        assert len(read_until(socket, [b"", b"", END, b"an-epoch"])) == 1
    late = server.dealer(*SNAPSHOT_REQUEST)
    wait_until(lambda: len(asked) >= 2, "a second call of the engine", 5)
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
async def test_without_a_snapshot_to_give_the_answer_is_its_end(serve: Serve, take_content: Any) -> None:
    server = serve()
    server.server.take_content = take_content
    assert server.dealer(*SNAPSHOT_REQUEST).recv_multipart() == [b"", b"", END, b""]
    with (
        zmq.asyncio.Context() as context,
        closing(RecoveryClient(context, server.address)) as client,
        pytest.raises(WireError, match="no snapshot"),
    ):
        await client.snapshot()
