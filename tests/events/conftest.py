"""Rigs for the event tests: real sockets on loopback, and a truth to compare with."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest
import zmq

from app.events.batch_codec import encode_batch
from app.events.config import KvEventsConfig
from app.events.following.subscriber import RankSubscriber
from app.events.publisher_info import PublisherAddress, PublisherInfo, PublisherState
from app.events.publishing.publisher import EventPublisher
from app.events.publishing.recovery_server import RecoveryServer
from app.events.replay import Framing, ReplayBuffer
from app.events.schema import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    CacheEvent,
    EventBatch,
    encode_seq,
)
from app.events.snapshot import CacheContent, CachedBlock, CacheSnapshot, snapshot_payloads
from tests.support.free_ports import find_free_ports


def stored(*hashes: int) -> BlockStored:
    return BlockStored(list(hashes), None, [0] * len(hashes), 1, medium="GPU")


def removed(*hashes: int) -> BlockRemoved:
    return BlockRemoved(list(hashes), "GPU")


class Blocks:
    """A naive cache: both the truth of a rank and the sink of a subscriber."""

    def __init__(self) -> None:
        self.hashes: set[int] = set()
        self.num_clears = 0

    def apply(self, events: Sequence[CacheEvent]) -> None:
        for event in events:
            match event:
                case BlockStored():
                    self.hashes |= set(event.block_hashes)
                case BlockRemoved():
                    self.hashes -= set(event.block_hashes)
                case AllBlocksCleared():
                    self.hashes.clear()

    def clear(self) -> None:
        self.hashes.clear()
        self.num_clears += 1

    def as_cached(self) -> list[CachedBlock]:
        return [CachedBlock(block_hash, None) for block_hash in self.hashes]


def publisher_info(**changes: Any) -> PublisherInfo:
    """Of rank 0 on this machine."""
    state = {name: changes.pop(name) for name in ("epoch", "last_seq") if name in changes}
    address = PublisherAddress(0, "127.0.0.1", 0, None, None, "", None, 1)
    return PublisherInfo(
        msgspec.structs.replace(address, **changes),
        msgspec.structs.replace(PublisherState("", -1, "publishing"), **state),
    )


def with_address(info: PublisherInfo, **changes: Any) -> PublisherInfo:
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

    def _serve_replay(self) -> None:
        self._buffer = ReplayBuffer(self._capacity)
        self._server: RecoveryServer | None = None
        if self.replay_port is None:
            return
        router = self._context.socket(zmq.ROUTER)
        RecoveryServer.prepare(router)
        deadline = time.monotonic() + 5
        while True:
            try:
                router.bind(f"tcp://127.0.0.1:{self.replay_port}")
                break
            except zmq.ZMQError:
                assert time.monotonic() < deadline, "the last server's port is not given back"
        self._server = RecoveryServer(router, self._buffer, Framing(b""), self._payloads)
        self._server.start()

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

    def _payloads(self, blocks: Sequence[CachedBlock]) -> Iterator[bytes]:
        return snapshot_payloads(blocks, dp_rank=0, block_size=1)

    def restart(self) -> None:
        """A new publisher in the old one's place, as seen by a subscriber that never lost the connection."""
        self.num_restarts += 1
        self.seq = -1
        self.truth = Blocks()
        if self._server:
            self._server.close()
        self._serve_replay()

    def info(self, **changes: Any) -> PublisherInfo:
        own = {"event_port": self.port, "replay_port": self.replay_port, "epoch": self.epoch}
        return publisher_info(**(own | {"last_seq": self.seq} | changes))

    async def hear(self, subscriber: RankSubscriber) -> None:
        """Return once live batches reach the subscriber: a subscription takes effect in its own time."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if subscriber.status.state == "exact":
                resyncs = subscriber.status.resyncs
                self.step()
                arrived = await holds(lambda: subscriber.status.applied_seq == self.seq, timeout_s=0.1)
                # After a resync it may have come in a snapshot, over a connection that hears nothing yet.
                if arrived and subscriber.status.resyncs == resyncs:
                    return
            await asyncio.sleep(0.005)
        raise AssertionError(subscriber.status)

    def close(self) -> None:
        if self._server:
            self._server.close()
        self._pub.close()
        self._context.term()


class Rank:
    """A real publisher with the truth of what it published; any thread may step, one at a time."""

    stored = staticmethod(stored)
    removed = staticmethod(removed)

    def __init__(self, config: KvEventsConfig, **options: Any) -> None:
        self.truth = Blocks()
        self.publisher = EventPublisher(
            config, **({"dp_rank": 0, "dp_size": 1, "block_size": 1, "linger_s": 0.2} | options)
        )
        self._changing = threading.Lock()
        self.publisher.start()
        self.publisher.serve_snapshots(self._take_content)

    @property
    def epoch(self) -> str:
        return self.publisher.epoch

    @property
    def seq(self) -> int:
        return self.publisher.last_seq

    def step(self, *events: CacheEvent) -> None:
        with self._changing:
            self.truth.apply(events)
            self.publisher.publish(list(events))

    async def snapshot(self) -> CacheSnapshot:
        return self.publisher.snapshot(self._take_content().result())

    def _take_content(self) -> Future[CacheContent]:
        future: Future[CacheContent] = Future()
        with self._changing:
            future.set_result(self.publisher.content(self.truth.as_cached()))
        return future


async def holds(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether `condition` came true before the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True


@pytest.fixture
def free_ports() -> Callable[[int], int]:
    return find_free_ports


@pytest.fixture
def make_rank(free_ports: Callable[[int], int]) -> Iterator[Callable[..., Rank]]:
    """Makes ranks from config keys (strings and numbers as in the JSON) and publisher options."""
    ranks: list[Rank] = []

    def make(options: dict[str, Any] | None = None, **keys: Any) -> Rank:
        keys.setdefault("endpoint", f"tcp://127.0.0.1:{free_ports(3)}")
        ranks.append(Rank(KvEventsConfig(publisher="zmq", **keys), **(options or {})))
        return ranks[-1]

    yield make
    for rank in ranks:
        rank.publisher.close()


class Rigs:
    """What a test file gets of this module's names, as files here can't import one another."""

    Blocks = Blocks
    LossyRank = LossyRank
    RankSubscriber = RankSubscriber
    stored = staticmethod(stored)
    removed = staticmethod(removed)
    holds = staticmethod(holds)
    info = staticmethod(publisher_info)
    with_address = staticmethod(with_address)


@pytest.fixture(scope="session")
def rigs() -> type[Rigs]:
    return Rigs


@pytest.fixture
def lossy_rank() -> Iterator[Callable[..., LossyRank]]:
    ranks: list[LossyRank] = []

    def make(**options: Any) -> LossyRank:
        ranks.append(LossyRank(**options))
        return ranks[-1]

    yield make
    for rank in ranks:
        rank.close()


@pytest.fixture
async def follow() -> AsyncIterator[Callable[..., RankSubscriber]]:
    """Starts subscribers and closes them after the test."""
    subscribers: list[RankSubscriber] = []

    def start(info: PublisherInfo, rank: Any, sink: Blocks, **options: Any) -> RankSubscriber:
        options.setdefault("on_load", lambda stat: None)
        options.setdefault("on_acknowledged", lambda ids: None)
        if rank is not None:
            options.setdefault("fetch_snapshot", rank.snapshot)
        subscribers.append(RankSubscriber(info, sink, **options))
        subscribers[-1].start()
        return subscribers[-1]

    yield start
    for subscriber in subscribers:
        await subscriber.close()


_RECOVERY = "seconds until exact"


@pytest.fixture
def report_seconds(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Notes how long a test's recovery took, to be printed when all have run."""

    def report(seconds: float, remark: str = "") -> None:
        record_property(_RECOVERY, f"{seconds:7.3f} s{remark and f', {remark}'}")

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        f"{value}  {report.nodeid}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == _RECOVERY and report.when == "call"
    ]
    if lines:
        terminalreporter.section("time until the subscriber's view was the publisher's cache again")
        for line in lines:
            terminalreporter.write_line(line)
