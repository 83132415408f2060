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
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import zmq

from app.events.config import KvEventsConfig
from app.events.endpoints import Endpoint, rank_endpoints
from app.events.ports import dial_host, is_reached_at
from app.events.publisher_info import PublisherAddress, PublisherInfo, PublisherState
from app.events.publishing.curve_server import CurveServer
from app.events.publishing.recovery_server import RecoveryServer, TakeContent
from app.events.publishing.sockets import SocketOpener
from app.events.publishing.thread import Batch, LoadReport, PublisherCounters, PublishingThread
from app.events.replay import Framing, ReplayBuffer
from app.events.schema import AllBlocksCleared, CacheEvent, LoadStat
from app.events.snapshot import (
    BLOCKS_PER_PAYLOAD,
    CacheContent,
    CachedBlock,
    CacheSnapshot,
    StoredBlocks,
    snapshot_payloads,
)

logger = logging.getLogger(__name__)


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
        planned: bool = True,
        bind_timeout_s: float = 5.0,
        linger_s: float = 1.0,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        """Opens nothing yet; with CURVE the context is one of its own. `planned` as in `rank_endpoints`.

        Raises:
            ConfigError: as `rank_endpoints`, or a CURVE key file can't be used.
        """
        self.epoch = secrets.token_hex(8)
        self.counters = PublisherCounters()
        self._config = config
        self._dp_rank = dp_rank
        self._block_size = block_size
        self._endpoints = rank_endpoints(config, dp_rank, dp_size, planned=planned)
        self._linger_s = linger_s
        self._context = context or zmq.Context.instance()
        self._curve = CurveServer(config.curve, f"rank {dp_rank}") if config.curve else None
        self._opener = SocketOpener(dp_rank, config.hwm, bind_timeout_s, self._curve)
        self._last_seq = -1
        self._buffer = ReplayBuffer(config.buffer_steps) if self._endpoints.replay else None
        self._recovery: RecoveryServer | None = None
        self._thread = PublishingThread(config, dp_rank, self.counters, self._buffer)
        self._state: Literal["new", "running", "closed"] = "new"

    @property
    def rank(self) -> int:
        """The number under which it publishes."""
        return self._dp_rank

    @property
    def ports(self) -> frozenset[int]:
        """The tcp ports that it binds; before the start, without those that the system will choose."""
        opened = (self._endpoints.events, self._endpoints.replay, self._endpoints.load)
        return frozenset(each.port for each in opened if each is not None and each.binds and each.port)

    @property
    def last_seq(self) -> int:
        """The last sequence number given out; -1 before the start."""
        return self._last_seq

    @property
    def is_running(self) -> bool:
        """Between `start` and `close`."""
        return self._state == "running"

    def info(self, node_host: str) -> PublisherInfo:
        """This publisher as others see it; `node_host` stands in for a wildcard host."""
        return PublisherInfo(self._address(node_host), self._current_state())

    def start(self) -> None:
        """Bind, start the threads and publish `AllBlocksCleared` as batch 0.

        A taken port is tried for `bind_timeout_s` seconds: its last owner may still be going away.

        Raises:
            EndpointInUseError: a port was still taken then.
            ConfigError: an address can't be bound on this machine at all.
        """
        assert self._state == "new", "started twice"
        if self._dp_rank == 0 and not self._curve:
            self._warn_if_exposed()
        try:
            if self._curve:
                self._context = self._curve.start()
            sockets = self._opener.open(self._context, self._endpoints)
        except Exception:
            if self._curve:
                self._curve.close()
            raise
        self._endpoints = sockets.endpoints
        if self._curve:
            self._curve.watch()
        if sockets.recovery:
            self._start_recovery(sockets.recovery)
        self._thread.start(sockets)
        self._state = "running"
        self.publish([AllBlocksCleared()])

    def close(self) -> None:
        """Send what is queued, for `linger_s` seconds at most, and close. A second call does nothing."""
        if not self.is_running:
            return
        self._state = "closed"
        self._thread.close(self._linger_s)
        if self._recovery:
            self._recovery.close()
        if self._curve:
            self._curve.close()

    def publish(self, events: Sequence[CacheEvent]) -> None:
        """Publish one step's events, which must not change any more, as one batch. Never blocks."""
        if events:
            self._put(events)

    def publish_content(self, blocks: Sequence[CachedBlock]) -> None:
        """Publish `blocks`, all that the cache holds now, parents before children, as if stored just now.

        The first that this publisher hears of a cache that was filled before: so a subscriber that reads them
        from 0 on knows the whole cache. The batches are made on the publisher's thread.
        """
        for first in range(0, len(blocks), BLOCKS_PER_PAYLOAD):
            self._put(StoredBlocks(blocks[first : first + BLOCKS_PER_PAYLOAD], self._block_size))

    def publish_load(self, stat: LoadStat, acknowledged: Sequence[str] = ()) -> None:
        """Publish a load report, then the ids of the requests that it is the first to count.

        Never blocks: where the queue is full the report is dropped. The next one replaces it, and what it
        acknowledges is reserved until its own deadline.
        """
        if self._endpoints.load and self.is_running:
            self._thread.put(LoadReport(stat, acknowledged))

    def content(self, blocks: Sequence[CachedBlock]) -> CacheContent:
        """`blocks`, all that the cache holds now, parents before children, as the state after `last_seq`."""
        return CacheContent(self.epoch, self._last_seq, blocks)

    def snapshot(self, content: CacheContent) -> CacheSnapshot:
        """`content` as it travels. Takes a while for many blocks; any thread may do it."""
        return CacheSnapshot(content.epoch, content.seq, list(self._payloads(content.blocks)))

    def serve_snapshots(self, take_content: TakeContent) -> None:
        """From now on answer requests for a snapshot with what `take_content` returns."""
        if self._recovery is not None:
            self._recovery.take_content = take_content

    def _put(self, events: Iterable[CacheEvent]) -> None:
        self._last_seq += 1
        if not (self.is_running and self._thread.put(Batch(self._last_seq, time.time(), events))):
            self.counters.dropped_batches += 1

    def _address(self, node_host: str) -> PublisherAddress:
        endpoints = self._endpoints
        host = dial_host(endpoints.events.host, node_host)
        load_port = _port_at(host, endpoints.load)
        return PublisherAddress(
            rank=self._dp_rank,
            host=host,
            event_port=endpoints.events.port or 0,
            replay_port=_port_at(host, endpoints.replay),
            load_port=load_port,
            topic=self._config.topic,
            load_topic=None if load_port is None else self._config.load_topic,
            block_size=self._block_size,
            curve_public_key=self._curve.public_key if self._curve else None,
        )

    def _current_state(self) -> PublisherState:
        return PublisherState(
            epoch=self.epoch,
            last_seq=self._last_seq,
            status="publishing" if self.is_running and self._endpoints.dialable else "disabled",
            dropped_batches=self.counters.dropped_batches + self.counters.failed_batches,
            overflows=self.counters.overflows,
            refused_clients=self._curve.refused_clients if self._curve else 0,
        )

    def _payloads(self, blocks: Sequence[CachedBlock]) -> Iterator[bytes]:
        return snapshot_payloads(
            blocks, dp_rank=self._dp_rank, block_size=self._block_size, format=self._config.format
        )

    def _start_recovery(self, socket: zmq.Socket[bytes]) -> None:
        assert self._buffer is not None
        topic = self._config.topic.encode() if self._config.replay_framing == "topic" else None
        framing = Framing(topic)
        self._recovery = RecoveryServer(socket, self._buffer, framing, self._payloads)
        self._recovery.start()

    def _warn_if_exposed(self) -> None:
        if addresses := self._endpoints.exposed:
            logger.warning(
                "%s: any client that reaches this can read %s; encrypt it with kv_events_config.curve, "
                "or listen on 127.0.0.1",
                ", ".join(addresses),
                "prompts' token ids" if self._config.token_ids else "the hashes of prompts' blocks",
            )


def _port_at(host: str, endpoint: Endpoint | None) -> int | None:
    """The port of `endpoint`, if one who dials `host` finds it there."""
    return endpoint.port if endpoint is not None and is_reached_at(endpoint.host, host) else None
