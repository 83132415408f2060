"""Ranks for the event tests: real sockets on loopback, and a truth to compare with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
import zmq

from app.events.batch_codec import encode_batch
from app.events.config import KvEventsConfig
from app.events.publisher_info import PublisherAddress, PublisherInfo, PublisherState
from app.events.publishing.publisher import EventPublisher
from app.events.publishing.recovery_server import RecoveryServer
from app.events.replay import Framing, ReplayBuffer
from app.events.schema import CacheEvent, EventBatch, LoadStat, encode_seq
from app.events.snapshot import CacheContent, CachedBlock, CacheSnapshot, snapshot_payloads
from tests.support.deadlines import wait_until
from tests.support.events.blocks import Blocks
from tests.support.free_ports import find_free_ports

STAT = LoadStat(1, 2, 3, 4, 0, 6, 7, 8, 9, 10)
"""A load report of rank 0."""


def publisher_info(epoch: str, last_seq: int = -1, **address: Any) -> PublisherInfo:
    """Of rank 0 on this machine, without replay and load reports unless `address` has their ports."""
    default = PublisherAddress(0, "127.0.0.1", 0, None, None, "", None, 1)
    return with_address(PublisherInfo(default, PublisherState(epoch, last_seq, "publishing")), **address)


def with_address(info: PublisherInfo, **changes: Any) -> PublisherInfo:
    """The same publisher at another address."""
    return PublisherInfo(msgspec.structs.replace(info.address, **changes), info.state)


class LossyRank:
    """A rank on bare sockets whose network loses what the test says, with a real replay server."""

    def __init__(self, replay: bool = False, capacity: int = 1000) -> None:
        self.truth = Blocks()
        self.seq = -1
        self.num_restarts = 0
        self.num_snapshots = 0
        self.snapshot_error: Exception | None = None
        self._capacity = capacity
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.setsockopt(zmq.LINGER, 0)
        self._pub.setsockopt(zmq.SNDHWM, 100_000)
        self.port = self._pub.bind_to_random_port("tcp://127.0.0.1")
        self.replay_port = find_free_ports(1) if replay else None
        self._serve_replay()

    @property
    def epoch(self) -> str:
        return f"epoch-{self.num_restarts}"

    def info(self, **changes: Any) -> PublisherInfo:
        ports = {"event_port": self.port, "replay_port": self.replay_port}
        return publisher_info(self.epoch, self.seq, **(ports | changes))

    def step(self, *events: CacheEvent, lost: bool = False, dp_rank: int = 0) -> None:
        self.seq += 1
        self.truth.apply(events)
        payload = encode_batch(EventBatch(time.time(), list(events), dp_rank))
        self._buffer.append(self.seq, payload)
        if not lost:
            self.send([b"", encode_seq(self.seq), payload])

    def send(self, frames: list[bytes]) -> None:
        self._pub.send_multipart(frames)

    async def snapshot(self) -> CacheSnapshot:
        self.num_snapshots += 1
        if self.snapshot_error is not None:
            raise self.snapshot_error
        return CacheSnapshot(self.epoch, self.seq, list(self._payloads(self.truth.as_cached())))

    def restart(self) -> None:
        """A new publisher in the old one's place, as seen by a subscriber that never lost the connection."""
        self.num_restarts += 1
        self.seq = -1
        self.truth = Blocks()
        if self._server:
            self._server.close()
        self._serve_replay()

    def close(self) -> None:
        if self._server:
            self._server.close()
        self._pub.close()
        self._context.term()

    def _serve_replay(self) -> None:
        self._buffer = ReplayBuffer(self._capacity)
        self._server: RecoveryServer | None = None
        if self.replay_port is None:
            return
        router = self._context.socket(zmq.ROUTER)
        RecoveryServer.prepare(router)

        def is_bound() -> bool:
            try:
                router.bind(f"tcp://127.0.0.1:{self.replay_port}")
            except zmq.ZMQError:
                return False
            return True

        wait_until(is_bound, "the last server's port given back", 5)
        self._server = RecoveryServer(router, self._buffer, Framing(b""), self._payloads)
        self._server.start()

    @staticmethod
    def _payloads(blocks: Sequence[CachedBlock]) -> Iterator[bytes]:
        return snapshot_payloads(blocks, dp_rank=0, block_size=1)


class Rank:
    """A real publisher with the truth of what it published; any thread may step, one at a time."""

    def __init__(self, config: KvEventsConfig, **options: Any) -> None:
        self.truth = Blocks()
        self.publisher = EventPublisher(
            config, **({"dp_rank": 0, "dp_size": 1, "block_size": 1, "linger_s": 0.2} | options)
        )
        self._changing = threading.Lock()
        self.publisher.start()
        self.publisher.serve_snapshots(self.take_content)

    @property
    def epoch(self) -> str:
        return self.publisher.epoch

    @property
    def seq(self) -> int:
        return self.publisher.last_seq

    @property
    def address(self) -> PublisherAddress:
        return self.info.address

    @property
    def info(self) -> PublisherInfo:
        return self.publisher.info("")

    def step(self, *events: CacheEvent) -> None:
        with self._changing:
            self.truth.apply(events)
            self.publisher.publish(list(events))

    async def snapshot(self) -> CacheSnapshot:
        return self.publisher.snapshot(self.take_content().result())

    def take_content(self) -> Future[CacheContent]:
        future: Future[CacheContent] = Future()
        with self._changing:
            future.set_result(self.publisher.content(self.truth.as_cached()))
        return future


MakeRank = Callable[..., Rank]
"""Makes a rank from config keys (strings and numbers as in the JSON) and publisher options."""
MakeLossyRank = Callable[..., LossyRank]
