"""A rank without an engine, in a process of its own on one core: a real publisher and a naive cache.

The measuring process sends orders and gets answers over a pipe; events go over ZMQ like any rank's.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import resource
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from app.events.endpoints import KvEventsConfig, PublisherInfo
from app.events.publisher import EventPublisher
from app.events.schema import MEDIUM, AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent
from app.events.snapshot import CacheContent, CachedBlock

BLOCK_SIZE = 16
_VOCABULARY = 50_000


@dataclass(frozen=True)
class Work:
    """What is published: batches of `num_events` chains of `blocks_per_event` blocks.

    Beyond `capacity` blocks each batch removes as many as it stores, oldest first.
    """

    num_batches: int
    num_events: int
    blocks_per_event: int
    capacity: int


@dataclass(frozen=True)
class Published:
    """How it went: wall and CPU seconds until the last batch was handed to ZMQ, all threads together."""

    wall_s: float
    cpu_s: float
    num_events: int
    num_stored: int
    num_removed: int
    last_seq: int
    dropped_batches: int


class RankProcess:
    """The measuring process's side."""

    def __init__(self, port: int, core: int, buffer_steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, port, core, buffer_steps), daemon=True)

    def __enter__(self) -> RankProcess:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.send(None)
        self._process.join()

    def info(self) -> PublisherInfo:
        """What to dial."""
        info: PublisherInfo = self._ask("info")
        return info

    def publish(self, work: Work) -> Published:
        """Do `work`; returns when all of it was handed to ZMQ."""
        published: Published = self._ask("publish", work)
        return published

    def fill(self, num_blocks: int, chain_length: int) -> None:
        """Hold `num_blocks` blocks in chains, and say so to nobody."""
        self._ask("fill", num_blocks, chain_length)

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._pipe.send((name, arguments))
        return self._pipe.recv()


class _Rank:
    """The publishing process's side; `CachedBlock`s lie ready as an engine has them."""

    def __init__(self, port: int, buffer_steps: int) -> None:
        config = KvEventsConfig(
            publisher="zmq",
            endpoint=f"tcp://127.0.0.1:{port}",
            replay_endpoint=f"tcp://127.0.0.1:{port + 10}",
            hwm=2**30,
            max_queue_size=2**30,
            buffer_steps=buffer_steps,
        )
        self._publisher = EventPublisher(config, dp_rank=0, dp_size=1, block_size=BLOCK_SIZE)
        self._publisher.start()
        self._publisher.serve_snapshots(self._take_content)
        self._blocks: dict[int, CachedBlock] = {}
        self._chains: deque[list[int]] = deque()
        self._rng = random.Random(1)

    def info(self) -> PublisherInfo:
        return self._publisher.info("127.0.0.1")

    def fill(self, num_blocks: int, chain_length: int) -> None:
        self._clear()
        while len(self._blocks) < num_blocks:
            self._store(chain_length)

    def publish(self, work: Work) -> Published:
        if not self._blocks:
            self._clear()
        batches = [list(self._batch(work)) for _ in range(work.num_batches)]
        flat = list(itertools.chain.from_iterable(batches))
        started, cpu = time.perf_counter(), cpu_s()
        for events in batches:
            self._publisher.publish(events)
        counters = self._publisher.counters
        while counters.published_batches + counters.dropped_batches <= self._publisher.last_seq:
            time.sleep(0.001)
        return Published(
            wall_s=time.perf_counter() - started,
            cpu_s=cpu_s() - cpu,
            num_events=len(flat),
            num_stored=sum(len(event.block_hashes) for event in flat if isinstance(event, BlockStored)),
            num_removed=sum(len(event.block_hashes) for event in flat if isinstance(event, BlockRemoved)),
            last_seq=self._publisher.last_seq,
            dropped_batches=counters.dropped_batches,
        )

    def close(self) -> None:
        self._publisher.close()

    def _clear(self) -> None:
        self._blocks.clear()
        self._chains.clear()
        self._publisher.publish([AllBlocksCleared()])

    def _batch(self, work: Work) -> Iterator[CacheEvent]:
        removed: list[int] = []
        for _ in range(work.num_events):
            while self._chains and len(self._blocks) + work.blocks_per_event > work.capacity:
                oldest = self._chains.popleft()
                for block_hash in oldest:
                    del self._blocks[block_hash]
                removed += reversed(oldest)
            if removed:
                yield BlockRemoved(removed, MEDIUM)
                removed = []
            hashes = self._store(work.blocks_per_event)
            tokens = self._rng.choices(range(_VOCABULARY), k=len(hashes) * BLOCK_SIZE)
            yield BlockStored(hashes, None, tokens, BLOCK_SIZE, medium=MEDIUM)

    def _store(self, num_blocks: int) -> list[int]:
        hashes = [self._rng.getrandbits(64) - 2**63 for _ in range(num_blocks)]
        self._blocks.update(zip(hashes, map(CachedBlock, hashes, [None, *hashes[:-1]]), strict=True))
        self._chains.append(hashes)
        return hashes

    def _take_content(self) -> Future[CacheContent]:
        # Nothing is published while a snapshot is asked for, so no lock is needed.
        future: Future[CacheContent] = Future()
        future.set_result(self._publisher.content(list(self._blocks.values())))
        return future


def _serve(pipe: Connection, port: int, core: int, buffer_steps: int) -> None:
    os.sched_setaffinity(0, {core})
    rank = _Rank(port, buffer_steps)
    while (order := pipe.recv()) is not None:
        name, arguments = order
        pipe.send(getattr(rank, name)(*arguments))
    rank.close()


def cpu_s() -> float:
    """CPU seconds of this process so far, all threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
