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
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

from app.events.config import KvEventsConfig
from app.events.publisher_info import PublisherInfo
from app.events.publishing.publisher import EventPublisher
from app.events.schema import MEDIUM, AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent
from app.events.snapshot import CacheContent, CachedBlock

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

BLOCK_SIZE = 16
CHAIN_LENGTH = 32
_VOCABULARY = 50_000


@dataclass(frozen=True)
class Work:
    """What is published: in every batch, each of `num_sequences` sequences grows by `blocks_per_event`.

    A sequence of `CHAIN_LENGTH` blocks is followed by another. Beyond `capacity` blocks each batch removes as
    many as it stores, oldest first.
    """

    num_batches: int
    num_sequences: int
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
        return self._ask(_Rank.info)

    def prepare(self, work: Work) -> None:
        """Make the batches of `work`, for `publish`."""
        self._ask(_Rank.prepare, work)

    def publish(self) -> Published:
        """Publish what was prepared; returns when all of it was handed to ZMQ."""
        return self._ask(_Rank.publish)

    def fill(self, num_blocks: int) -> None:
        """Hold `num_blocks` blocks in chains, without publishing them."""
        self._ask(_Rank.fill, num_blocks)

    def _ask(
        self,
        method: Callable[Concatenate[_Rank, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Have the other side call a method of its rank; the method is pickled as its qualified name."""
        self._pipe.send((method, args, kwargs))
        result: Result = self._pipe.recv()
        return result


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
        self._batches: list[list[CacheEvent]] = []
        self._rng = random.Random(1)

    def info(self) -> PublisherInfo:
        return self._publisher.info("127.0.0.1")

    def fill(self, num_blocks: int) -> None:
        self._clear()
        while len(self._blocks) < num_blocks:
            self._grow(self._new_chain(), CHAIN_LENGTH)

    def prepare(self, work: Work) -> None:
        if not self._blocks:
            self._clear()
        growing = [self._new_chain() for _ in range(work.num_sequences)]
        self._batches = [list(self._batch(work, growing)) for _ in range(work.num_batches)]

    def publish(self) -> Published:
        batches, self._batches = self._batches, []
        flat = list(itertools.chain.from_iterable(batches))
        started, cpu = time.perf_counter(), cpu_s()
        for events in batches:
            self._publisher.publish(events)
        counters = self._publisher.counters
        while counters.published_batches <= self._publisher.last_seq:
            assert not counters.dropped_batches + counters.failed_batches, counters
            time.sleep(0.001)
        return Published(
            wall_s=time.perf_counter() - started,
            cpu_s=cpu_s() - cpu,
            num_events=len(flat),
            num_stored=sum(len(event.block_hashes) for event in flat if isinstance(event, BlockStored)),
            num_removed=sum(len(event.block_hashes) for event in flat if isinstance(event, BlockRemoved)),
            last_seq=self._publisher.last_seq,
        )

    def close(self) -> None:
        self._publisher.close()

    def _clear(self) -> None:
        self._blocks.clear()
        self._chains.clear()
        self._publisher.publish([AllBlocksCleared()])

    def _batch(self, work: Work, growing: list[list[int]]) -> Iterator[CacheEvent]:
        excess = len(self._blocks) + work.num_sequences * work.blocks_per_event - work.capacity
        if excess > 0:
            yield BlockRemoved([self._evict() for _ in range(excess)], MEDIUM)
        for index, chain in enumerate(growing):
            if len(chain) == CHAIN_LENGTH:
                growing[index] = chain = self._new_chain()
            parent = chain[-1] if chain else None
            hashes = self._grow(chain, work.blocks_per_event)
            tokens = self._rng.choices(range(_VOCABULARY), k=len(hashes) * BLOCK_SIZE)
            yield BlockStored(hashes, parent, tokens, BLOCK_SIZE, medium=MEDIUM)

    def _evict(self) -> int:
        """The last block of the oldest chain."""
        while not self._chains[0]:
            self._chains.popleft()
        block_hash = self._chains[0].pop()
        del self._blocks[block_hash]
        return block_hash

    def _new_chain(self) -> list[int]:
        self._chains.append([])
        return self._chains[-1]

    def _grow(self, chain: list[int], num_blocks: int) -> list[int]:
        """New blocks at the end of a chain."""
        hashes = [self._rng.getrandbits(64) - 2**63 for _ in range(num_blocks)]
        parents = [chain[-1] if chain else None, *hashes[:-1]]
        self._blocks.update(zip(hashes, map(CachedBlock, hashes, parents), strict=True))
        chain += hashes
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
        method, args, kwargs = order
        pipe.send(method(rank, *args, **kwargs))
    rank.close()


def cpu_s() -> float:
    """CPU seconds of this process so far, all threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
