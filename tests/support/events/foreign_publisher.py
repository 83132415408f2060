"""A publisher that speaks as vLLM's and SGLang's do: one loop sends batches and serves replays."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq

_END = b"\xff" * 8
_IDLE_S = 0.1


@dataclass
class Batch:
    """One batch, and whether it goes out or is only kept for replays."""

    payload: bytes
    is_sent: bool


@dataclass
class WirePublisher:
    """Publishes at `events` and replays at `replays`, ZMQ endpoints to bind.

    Attributes:
        topic: the first frame.
        with_topic: replies as vLLM and SGLang 0.5.23 frame them; without it as SGLang 0.5.13.
        with_end: whether a replay is ended by a message.
        buffer: batches that are kept.
    """

    events: str
    replays: str | None
    topic: bytes = b""
    with_topic: bool = True
    with_end: bool = True
    buffer: int = 10_000
    num_requests: int = 0
    _queue: queue.Queue[Batch | None] = field(default_factory=queue.Queue)

    @property
    def is_running(self) -> bool:
        """Between `start` and `close`."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Bind, and serve until `close`."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub = self._bind(zmq.PUB, self.events)
        self._router = None if self.replays is None else self._bind(zmq.ROUTER, self.replays)
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=self.buffer)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, as a worker that dies."""
        self._queue.put(None)
        self._thread.join()
        self._context.destroy(linger=0)

    def publish(self, payload: bytes, *, is_sent: bool = True) -> None:
        """The next batch; one that isn't sent is lost on the way."""
        self._queue.put(Batch(payload, is_sent))

    def publish_events(self, events: Collection[dict[str, Any]], *, is_sent: bool = True) -> None:
        """The next batch, of these events."""
        self.publish(msgspec.msgpack.encode([0.0, events, 0]), is_sent=is_sent)

    def wait_published(self) -> None:
        """Return once all batches so far are out, or kept."""
        self._queue.join()

    def _bind(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(endpoint)
        return socket

    def _run(self) -> None:
        seq = 0
        while True:
            if self._router is not None and self._router.poll(0):
                self._serve(self._router)
            try:
                batch = self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                continue
            if batch is None:
                return
            if batch.is_sent:
                self._pub.send_multipart([self.topic, seq.to_bytes(8, "big"), batch.payload])
            self._kept.append((seq, batch.payload))
            seq += 1
            self._queue.task_done()

    def _serve(self, router: zmq.Socket[bytes]) -> None:
        peer, _, first = router.recv_multipart()
        self.num_requests += 1
        topic = [self.topic] if self.with_topic else []
        for seq, payload in self._kept:
            if seq >= int.from_bytes(first, "big"):
                router.send_multipart([peer, b"", *topic, seq.to_bytes(8, "big"), payload])
        if self.with_end:
            router.send_multipart([peer, b"", *([b""] if self.with_topic else []), _END, b""])
