"""A recovery server with batches of its own, and bare clients of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import zmq

from app.events.batch_codec import encode_batch
from app.events.publishing.recovery_server import RecoveryServer
from app.events.replay import Framing, ReplayBuffer
from app.events.schema import AllBlocksCleared, EventBatch
from app.events.snapshot import CacheContent, CachedBlock, snapshot_payloads


class RecoveryRig:
    """A recovery server with `count` batches of which it keeps the last `capacity`, and its clients."""

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


Serve = Callable[..., RecoveryRig]
"""Starts one: `count`, `capacity`, `topic`, `size` of a payload, `stall_timeout_s`; all have defaults."""


def answered(blocks: Sequence[CachedBlock], seq: int = 5) -> Callable[[], Future[CacheContent]]:
    """An engine that answers at once."""

    def take() -> Future[CacheContent]:
        future: Future[CacheContent] = Future()
        future.set_result(CacheContent("an-epoch", seq, blocks))
        return future

    return take
