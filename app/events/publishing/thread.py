"""The thread that encodes and sends what a rank's engine has handed over, in that order."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

import msgspec
import zmq

from app.events.bad_messages import BadMessages
from app.events.batch_codec import encode_batch
from app.events.config import KvEventsConfig
from app.events.publishing.sockets import RankSockets
from app.events.replay import ReplayBuffer
from app.events.schema import (
    ACK_TOPIC,
    Acknowledged,
    BlockStored,
    CacheEvent,
    EventBatch,
    LoadStat,
    encode_acknowledged,
    encode_load,
    encode_seq,
)

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """One step's events with the number and the time at which they were handed over.

    `events` may be made only when they are iterated over, once.
    """

    seq: int
    ts: float
    events: Iterable[CacheEvent]


class LoadReport(NamedTuple):
    """A load report, and the ids of the requests that it is the first to count."""

    stat: LoadStat
    acknowledged: Sequence[str]


@dataclass(slots=True)
class PublisherCounters:
    """What a publisher has done since its start. Each field is written by one thread.

    Attributes:
        published_batches: kept for replay, and handed to ZMQ.
        dropped_batches: not sent, because the queue was full.
        failed_batches: not sent, because they couldn't be encoded.
        overflows: times that a subscriber's queue was found full. From then on ZMQ drops batches for that
            subscriber, without saying how many, until it has read some.
    """

    published_batches: int = 0
    dropped_batches: int = 0
    failed_batches: int = 0
    overflows: int = 0


class PublishingThread:
    """Owns the PUB sockets from `start` on.

    Args:
        config: what to send, and how.
        dp_rank: the rank's number.
        counters: written here but for what is dropped before it comes here.
        buffer: gets every batch for replay, if there is a replay.
    """

    def __init__(
        self, config: KvEventsConfig, dp_rank: int, counters: PublisherCounters, buffer: ReplayBuffer | None
    ) -> None:
        self._config = config
        self._dp_rank = dp_rank
        self._counters = counters
        self._buffer = buffer
        self._topic = config.topic.encode()
        self._load_topic = config.load_topic.encode()
        self._load_seq = 0
        self._ack_seq = 0
        self._slow = BadMessages(logger, f"rank {dp_rank}", "a subscriber reads too slowly at")
        self._queue: SimpleQueue[Batch | LoadReport | None] = SimpleQueue()
        self._linger_s = 0.0
        self._drain_until: float | None = None
        self._thread: threading.Thread | None = None

    def start(self, sockets: RankSockets) -> None:
        """Send until `close`."""
        self._thread = threading.Thread(
            target=self._run, args=(sockets.events, sockets.load), name="kv-publisher", daemon=True
        )
        self._thread.start()

    def close(self, linger_s: float) -> None:
        """Send what is queued, for `linger_s` seconds at most, then close the sockets."""
        assert self._thread is not None, "not started"
        self._linger_s = linger_s
        self._drain_until = time.monotonic() + linger_s
        self._queue.put(None)
        self._thread.join()

    def put(self, item: Batch | LoadReport) -> bool:
        """Hand over; False where the queue is full. Never blocks. All callers are one thread."""
        # Only that thread puts, so the size can but shrink in between.
        if self._queue.qsize() >= self._config.max_queue_size:
            return False
        self._queue.put(item)
        return True

    def _run(self, events: zmq.Socket[bytes], load: zmq.Socket[bytes] | None) -> None:
        while (item := self._queue.get()) is not None and not self._is_too_late():
            try:
                if isinstance(item, Batch):
                    self._send_batch(events, item)
                elif load is not None:
                    self._send_load(load, item)
            except Exception:
                # One batch that can't be sent must not end all publishing; its gap shows it to subscribers.
                self._counters.failed_batches += isinstance(item, Batch)
                logger.exception("rank %d: a message could not be published", self._dp_rank)
        events.close(linger=int(self._linger_s * 1000))
        if load is not None:
            load.close(linger=0)

    def _is_too_late(self) -> bool:
        return self._drain_until is not None and time.monotonic() > self._drain_until

    def _send_batch(self, socket: zmq.Socket[bytes], batch: Batch) -> None:
        events = list(batch.events) if self._config.token_ids else [_without_tokens(e) for e in batch.events]
        payload = encode_batch(EventBatch(batch.ts, events, self._dp_rank), self._config.format)
        if self._buffer is not None:
            # First into the buffer: a subscriber that sees a later batch can ask for this one.
            self._buffer.append(batch.seq, payload)
        self._send(socket, [self._topic, encode_seq(batch.seq), payload])
        self._counters.published_batches += 1

    def _send_load(self, socket: zmq.Socket[bytes], load: LoadReport) -> None:
        self._send(socket, [self._load_topic, encode_seq(self._load_seq), encode_load(load.stat)])
        self._load_seq += 1
        if load.acknowledged:
            message = Acknowledged(self._dp_rank, list(load.acknowledged))
            self._send(socket, [ACK_TOPIC, encode_seq(self._ack_seq), encode_acknowledged(message)])
            self._ack_seq += 1

    def _send(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        """Send to all whose queue has place. ZMQ says once that some queue has none, then drops for it."""
        try:
            socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            self._counters.overflows += 1
            self._slow.add(f"what its queue of {self._config.hwm} can't take is dropped for it")
            socket.setsockopt(zmq.XPUB_NODROP, 0)
            socket.send_multipart(frames, zmq.NOBLOCK)
            socket.setsockopt(zmq.XPUB_NODROP, 1)


def _without_tokens(event: CacheEvent) -> CacheEvent:
    return msgspec.structs.replace(event, token_ids=[]) if isinstance(event, BlockStored) else event
