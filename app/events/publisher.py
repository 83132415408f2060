"""One rank's publisher of cache events and load reports.

    engine thread ──publish()──▶ queue ──▶ publisher thread ──▶ PUB events, PUB load
        │           seq is given out here        │
        │                                   ReplayBuffer ──▶ recovery thread ──▶ ROUTER
        └───────── CacheContent, when asked for a snapshot ───────┘

The engine never waits: when the queue is full a batch is dropped and counted, and as its sequence number is
used up every subscriber sees the gap. Sequence numbers are given out in the engine's thread, so that what
the cache holds between two steps is exactly what the batches up to `last_seq` say.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

import msgspec
import zmq

from app.errors import ConfigError, EndpointInUseError
from app.events.batch_codec import encode_batch
from app.events.curve_server import CurveServer
from app.events.endpoints import Endpoint, KvEventsConfig, PublisherInfo, rank_endpoints
from app.events.ports import dial_host
from app.events.recovery_server import RecoveryServer, TakeContent
from app.events.replay import Framing, ReplayBuffer
from app.events.schema import (
    ACK_TOPIC,
    Acknowledged,
    AllBlocksCleared,
    BlockStored,
    CacheEvent,
    EventBatch,
    LoadStat,
    encode_acknowledged,
    encode_load,
    encode_seq,
)
from app.events.snapshot import CacheContent, CachedBlock, CacheSnapshot, snapshot_payloads

logger = logging.getLogger(__name__)

_BIND_RETRY_S = 0.05
_LOG_EVERY_S = 10.0


@dataclass(slots=True)
class PublisherCounters:
    """What a publisher has done since its start. Each field is written by one thread.

    Attributes:
        dropped_batches: not sent, because the queue was full.
        failed_batches: not sent, because they couldn't be encoded.
        overflows: times that a subscriber's queue was found full. From then on ZMQ drops batches for that
            subscriber, without saying how many, until it has read some.
    """

    published_batches: int = 0
    published_events: int = 0
    dropped_batches: int = 0
    failed_batches: int = 0
    overflows: int = 0
    published_loads: int = 0
    dropped_loads: int = 0


class EventPublisher:
    """Publishes what one rank's cache holds and how busy the rank is.

    `publish`, `publish_load` and `content` belong to one thread, the engine's.
    """

    def __init__(
        self,
        config: KvEventsConfig,
        *,
        dp_rank: int,
        dp_size: int,
        block_size: int,
        bind_timeout_s: float = 5.0,
        linger_s: float = 1.0,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        """Opens nothing yet; with CURVE the context is one of its own.

        Raises:
            ConfigError: as `rank_endpoints`, or a CURVE key file can't be used.
        """
        self.epoch = secrets.token_hex(8)
        self.counters = PublisherCounters()
        self._config = config
        self._dp_rank = dp_rank
        self._block_size = block_size
        self._endpoints = rank_endpoints(config, dp_rank, dp_size)
        self._bind_timeout_s = bind_timeout_s
        self._linger_s = linger_s
        self._context = context or zmq.Context.instance()
        self._curve = CurveServer(config.curve, f"rank {dp_rank}") if config.curve else None
        self._topic = config.topic.encode()
        self._load_topic = config.load_topic.encode()
        self._last_seq = -1
        self._load_seq = 0
        self._ack_seq = 0
        self._queue: SimpleQueue[_Batch | _Load | None] = SimpleQueue()
        self._buffer: ReplayBuffer | None = None
        self._recovery: RecoveryServer | None = None
        self._thread: threading.Thread | None = None
        self._drain_until: float | None = None
        self._overflow_logged_at = -_LOG_EVERY_S

    @property
    def last_seq(self) -> int:
        """The last sequence number given out; -1 before the start."""
        return self._last_seq

    @property
    def is_running(self) -> bool:
        """Between `start` and `close`."""
        return self._thread is not None and self._drain_until is None

    def info(self, node_host: str) -> PublisherInfo:
        """This publisher as others see it; `node_host` stands in for a wildcard host."""
        endpoints = self._endpoints
        load = endpoints.load
        return PublisherInfo(
            rank=self._dp_rank,
            host=dial_host(endpoints.host, node_host),
            event_port=endpoints.events.port or 0,
            replay_port=endpoints.replay.port if endpoints.replay else None,
            load_port=load.port if load else None,
            topic=self._config.topic,
            load_topic=self._config.load_topic if load else None,
            block_size=self._block_size,
            epoch=self.epoch,
            last_seq=self._last_seq,
            state="publishing" if self.is_running and endpoints.dialable else "disabled",
            dropped_batches=self.counters.dropped_batches + self.counters.failed_batches,
            overflows=self.counters.overflows,
            curve_public_key=self._curve.public_key if self._curve else None,
            refused_clients=self._curve.refused_clients if self._curve else 0,
        )

    def start(self) -> None:
        """Bind, start the threads and publish `AllBlocksCleared` as batch 0.

        A taken port is tried for `bind_timeout_s` seconds: its last owner may still be going away.

        Raises:
            EndpointInUseError: a port was still taken then.
            ConfigError: an address can't be bound on this machine at all.
        """
        assert self._thread is None, "started twice"
        opened: list[zmq.Socket[bytes]] = []
        deadline = time.monotonic() + self._bind_timeout_s
        if self._dp_rank == 0 and not self._curve:
            self._warn_if_exposed()
        try:
            if self._curve:
                self._context = self._curve.start()
            events = self._open(self._endpoints.events, zmq.PUB, deadline, opened)
            load = self._endpoints.load and self._open(self._endpoints.load, zmq.PUB, deadline, opened)
            recovery = self._endpoints.replay and self._open(
                self._endpoints.replay, zmq.ROUTER, deadline, opened
            )
        except Exception:
            for socket in opened:
                socket.close(linger=0)
            if self._curve:
                self._curve.close()
            raise
        if self._curve:
            self._curve.watch()
        if recovery:
            self._start_recovery(recovery)
        self._thread = threading.Thread(
            target=self._run, args=(events, load), name="kv-publisher", daemon=True
        )
        self._thread.start()
        self.publish([AllBlocksCleared()])

    def publish(self, events: Sequence[CacheEvent]) -> None:
        """Publish one step's events, which must not change any more, as one batch. Never blocks."""
        if not events:
            return
        self._last_seq += 1
        if not self._enqueue(_Batch(self._last_seq, time.time(), events)):
            self.counters.dropped_batches += 1

    def publish_load(self, stat: LoadStat, acknowledged: Sequence[str] = ()) -> None:
        """Publish a load report, then the ids of the requests that it is the first to count."""
        if self._endpoints.load and not self._enqueue(_Load(stat, acknowledged)):
            self.counters.dropped_loads += 1

    def content(self, blocks: Sequence[CachedBlock]) -> CacheContent:
        """`blocks`, all that the cache holds now, parents before children, as the state after `last_seq`."""
        return CacheContent(self.epoch, self._last_seq, blocks)

    def snapshot(self, content: CacheContent) -> CacheSnapshot:
        """`content` as it travels. Takes a while for many blocks; any thread may do it."""
        return CacheSnapshot(content.epoch, content.seq, list(self._payloads(content.blocks)))

    def serve_snapshots(self, take_content: TakeContent) -> None:
        """From now on give snapshots of what `take_content` returns to whoever asks the recovery socket."""
        if self._recovery is not None:
            self._recovery.take_content = take_content

    def close(self) -> None:
        """Send what is queued, for `linger_s` seconds at most, and close. A second call does nothing."""
        if self._thread is None or not self.is_running:
            return
        self._drain_until = time.monotonic() + self._linger_s
        self._queue.put(None)
        self._thread.join()
        if self._recovery:
            self._recovery.close()
        if self._curve:
            self._curve.close()

    def _enqueue(self, item: _Batch | _Load) -> bool:
        # Only this thread puts, so the size can but shrink in between.
        if not self.is_running or self._queue.qsize() >= self._config.max_queue_size:
            return False
        self._queue.put(item)
        return True

    def _payloads(self, blocks: Sequence[CachedBlock]) -> Iterator[bytes]:
        return snapshot_payloads(
            blocks, dp_rank=self._dp_rank, block_size=self._block_size, format=self._config.format
        )

    def _start_recovery(self, socket: zmq.Socket[bytes]) -> None:
        self._buffer = ReplayBuffer(self._config.buffer_steps)
        framing = Framing(self._topic if self._config.replay_framing == "topic" else None)
        self._recovery = RecoveryServer(socket, self._buffer, framing, self._payloads)
        self._recovery.start()

    def _warn_if_exposed(self) -> None:
        if addresses := self._endpoints.exposed:
            logger.warning(
                "%s: whoever reaches this can read %s; encrypt it with kv_events_config.curve, "
                "or listen on 127.0.0.1",
                ", ".join(addresses),
                "prompts' token ids" if self._config.token_ids else "the hashes of prompts' blocks",
            )

    def _open(
        self, endpoint: Endpoint, kind: int, deadline: float, opened: list[zmq.Socket[bytes]]
    ) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        opened.append(socket)
        socket.setsockopt(zmq.IPV6, "[" in endpoint.address)
        if kind == zmq.ROUTER:
            RecoveryServer.prepare(socket)
        else:
            socket.setsockopt(zmq.SNDHWM, self._config.hwm)
            # Without this a full queue of some subscriber would go unnoticed; see `_send`.
            socket.setsockopt(zmq.XPUB_NODROP, 1)
        if self._curve:
            self._curve.secure(socket, endpoint.address)
        if endpoint.binds:
            self._bind(socket, endpoint.address, deadline)
        else:
            socket.connect(endpoint.address)
        return socket

    def _bind(self, socket: zmq.Socket[bytes], address: str, deadline: float) -> None:
        while True:
            try:
                socket.bind(address)
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE:
                    raise ConfigError(f"rank {self._dp_rank} can't bind {address}: {error}") from None
                if time.monotonic() > deadline:
                    raise EndpointInUseError(
                        f"rank {self._dp_rank} can't bind {address}: in use by another process "
                        f"for {self._bind_timeout_s:g} s; free the port or choose another"
                    ) from None
                time.sleep(_BIND_RETRY_S)
            else:
                return

    # From here on: the publisher's thread, which alone touches the PUB sockets.

    def _run(self, events: zmq.Socket[bytes], load: zmq.Socket[bytes] | None) -> None:
        while (item := self._queue.get()) is not None and not self._is_too_late():
            try:
                if isinstance(item, _Batch):
                    self._send_batch(events, item)
                elif load is not None:
                    self._send_load(load, item)
            except Exception:
                # One batch that can't be sent must not end all publishing; its gap tells subscribers.
                self.counters.failed_batches += isinstance(item, _Batch)
                logger.exception("rank %d: a message could not be published", self._dp_rank)
        events.close(linger=int(self._linger_s * 1000))
        if load is not None:
            load.close(linger=0)

    def _is_too_late(self) -> bool:
        return self._drain_until is not None and time.monotonic() > self._drain_until

    def _send_batch(self, socket: zmq.Socket[bytes], batch: _Batch) -> None:
        events = list(batch.events) if self._config.token_ids else [_without_tokens(e) for e in batch.events]
        payload = encode_batch(EventBatch(batch.ts, events, self._dp_rank), self._config.format)
        if self._buffer is not None:
            # First into the buffer: whoever sees a later batch can ask for this one.
            self._buffer.append(batch.seq, payload)
        self._send(socket, [self._topic, encode_seq(batch.seq), payload])
        self.counters.published_batches += 1
        self.counters.published_events += len(events)

    def _send_load(self, socket: zmq.Socket[bytes], load: _Load) -> None:
        self._send(socket, [self._load_topic, encode_seq(self._load_seq), encode_load(load.stat)])
        self._load_seq += 1
        self.counters.published_loads += 1
        if load.acknowledged:
            message = Acknowledged(self._dp_rank, list(load.acknowledged))
            self._send(socket, [ACK_TOPIC, encode_seq(self._ack_seq), encode_acknowledged(message)])
            self._ack_seq += 1

    def _send(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        """Send to all whose queue has place. ZMQ says once that some queue has none, then drops for it."""
        try:
            socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            self.counters.overflows += 1
            self._log_overflow()
            socket.setsockopt(zmq.XPUB_NODROP, 0)
            socket.send_multipart(frames, zmq.NOBLOCK)
            socket.setsockopt(zmq.XPUB_NODROP, 1)

    def _log_overflow(self) -> None:
        now = time.monotonic()
        if now - self._overflow_logged_at >= _LOG_EVERY_S:
            self._overflow_logged_at = now
            logger.warning(
                "rank %d: a subscriber reads too slowly; what its queue of %d can't take is dropped for it",
                self._dp_rank,
                self._config.hwm,
            )


class _Batch(NamedTuple):
    seq: int
    ts: float
    events: Sequence[CacheEvent]


class _Load(NamedTuple):
    stat: LoadStat
    acknowledged: Sequence[str]


def _without_tokens(event: CacheEvent) -> CacheEvent:
    return msgspec.structs.replace(event, token_ids=[]) if isinstance(event, BlockStored) else event
