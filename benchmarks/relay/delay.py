"""From a worker's event to the router's index: another process, the feed, our publisher and subscriber."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from multiprocessing.connection import Connection

import zmq

from app import hashing
from app.engine.relay.feed import ForeignFeed
from app.engine.relay.feed_status import ForeignPublisher
from app.engine.relay.relay import Relay
from app.events.config import KvEventsConfig
from app.events.following.subscriber import RankSubscriber
from app.events.publishing.publisher import EventPublisher
from app.events.schema import BlockStored, CacheEvent
from app.events.snapshot import CacheContent, CachedBlock, CacheSnapshot
from app.routing.index.index_writer import IndexWriter
from app.routing.index.prefix_index import PrefixIndex
from benchmarks.relay.workload import BLOCK_SIZE, encode, stored_event

_TIMEOUT_S = 60.0
_INTERVAL_S = 0.01
_CHAIN = 8
"""Blocks of one event."""


async def measure_delay(num_batches: int) -> list[float]:
    """Seconds from each batch's sending, in another process, until its blocks are in the index here."""
    worker_port, event_port, replay_port = _free_ports(3)
    publisher = EventPublisher(
        KvEventsConfig(
            publisher="zmq",
            endpoint=f"tcp://127.0.0.1:{event_port}",
            replay_endpoint=f"tcp://127.0.0.1:{replay_port}",
            load_reports=False,
        ),
        dp_rank=0,
        dp_size=1,
        block_size=BLOCK_SIZE,
    )
    publisher.start()
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_publish, args=(theirs, worker_port, num_batches), daemon=True)
    process.start()
    feed = ForeignFeed(
        ForeignPublisher(f"tcp://127.0.0.1:{worker_port}", None),
        Relay(BLOCK_SIZE, hashes="opaque", source="the worker"),
        publisher.publish,
        name="the worker",
    )
    router = _Router(publisher, feed)
    feed.start()
    try:
        async with asyncio.timeout(_TIMEOUT_S + num_batches * _INTERVAL_S):
            while feed.status.state != "partial" or router.state != "exact":
                await asyncio.sleep(0.05)
            pipe.send(None)
            sent: list[float] = await asyncio.to_thread(pipe.recv)
            while len(router.arrived) < num_batches:
                await asyncio.sleep(0.05)
    finally:
        await router.close()
        await feed.close()
        publisher.close()
        process.kill()
    return [router.arrived[_name(number)] - sent_at for number, sent_at in enumerate(sent)]


class _Router:
    """Follows the publisher, and notes when each batch's first block is in the index."""

    def __init__(self, publisher: EventPublisher, feed: ForeignFeed) -> None:
        self.arrived: dict[int, float] = {}
        self._publisher, self._feed = publisher, feed
        self._writer = IndexWriter(PrefixIndex(), 0)
        self._subscriber = RankSubscriber(
            publisher.info("127.0.0.1"),
            self,
            fetch_snapshot=self._snapshot,
            on_load=_ignore,
            on_acknowledged=_ignore,
        )
        self._subscriber.start()
        self.close = self._subscriber.close

    @property
    def state(self) -> str:
        """How well the rank is known."""
        return self._subscriber.status.state

    def apply(self, events: Sequence[CacheEvent]) -> None:
        """See `CacheSink`."""
        self._writer.apply(events)
        now = time.monotonic()
        for event in events:
            if isinstance(event, BlockStored):
                self.arrived[event.block_hashes[0]] = now

    def clear(self) -> None:
        """See `CacheSink`."""
        self._writer.clear()

    async def _snapshot(self) -> CacheSnapshot:
        def read(blocks: Sequence[CachedBlock]) -> CacheContent:
            return self._publisher.content(blocks)

        content: Future[CacheContent] = self._feed.content(read)
        return self._publisher.snapshot(content.result(timeout=0))


def _publish(pipe: Connection, port: int, num_batches: int) -> None:
    """The worker: sends a batch every 10 ms once it is told to, and says when it sent each."""
    pub: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
    pub.bind(f"tcp://127.0.0.1:{port}")
    pipe.recv()
    sent = []
    for number in range(num_batches):
        keys: list[int | bytes] = [number * _CHAIN + index for index in range(_CHAIN)]
        payload = encode([stored_event(keys, None, _token_ids(number))])
        sent.append(time.monotonic())
        pub.send_multipart([b"", number.to_bytes(8, "big"), payload])
        time.sleep(_INTERVAL_S)
    pipe.send(sent)
    pipe.recv()


def _token_ids(number: int) -> list[int]:
    return [number] * (_CHAIN * BLOCK_SIZE)


def _name(number: int) -> int:
    return hashing.wire_hash(hashing.chain(_token_ids(number), BLOCK_SIZE)[0])


def _ignore(_: object) -> None:
    pass


def _free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
