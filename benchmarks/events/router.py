"""What a router does with one rank's events, measured in this process: real subscriber, real index."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import msgspec
import zmq.asyncio

from app.events.following.recovery_client import RecoveryClient
from app.events.following.subscriber import RankSubscriber
from app.events.publisher_info import PublisherInfo
from app.events.snapshot import CacheSnapshot
from app.routing.index.index_writer import IndexWriter
from app.routing.index.prefix_index import PrefixIndex
from benchmarks.events.rank import Published, RankProcess, Work, cpu_s

SnapshotFetcher = Callable[[], Awaitable[CacheSnapshot]]
_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Stream:
    """A stream of batches from a rank's process to this one.

    Attributes:
        published: how the rank did.
        wall_s: from the first batch published to the last one in the index.
        cpu_s: this process's, all threads together.
    """

    published: Published
    wall_s: float
    cpu_s: float

    @property
    def num_blocks(self) -> int:
        """Stored and removed."""
        return self.published.num_stored + self.published.num_removed

    @property
    def num_events(self) -> int:
        """Of both kinds."""
        return self.published.num_events


class _Router:
    """One rank, followed as a router does, but asking for replays of any length."""

    def __init__(self, info: PublisherInfo, fetch_snapshot: SnapshotFetcher) -> None:
        self.index = PrefixIndex()
        self._subscriber = RankSubscriber(
            info,
            IndexWriter(self.index, 0),
            fetch_snapshot=fetch_snapshot,
            on_load=_ignore,
            on_acknowledged=_ignore,
            max_replayed_batches=2**30,
            snapshot_timeout_s=_TIMEOUT_S,
        )
        self._subscriber.start()
        self.close = self._subscriber.close

    async def until(self, seq: int) -> None:
        """Return once the view is exact and batch `seq` is in it."""
        async with asyncio.timeout(_TIMEOUT_S):
            while self._subscriber.status.state != "exact" or self._subscriber.status.applied_seq < seq:
                await asyncio.sleep(0.001)


def _ignore(_: object) -> None:
    pass


def _without_replay(info: PublisherInfo) -> PublisherInfo:
    return PublisherInfo(msgspec.structs.replace(info.address, replay_port=None), info.state)


async def measure_stream(rank: RankProcess, work: Work) -> Stream:
    """`work`, published by the rank from an empty cache on, and taken in here."""
    rank.fill(0)
    async with _recovery(rank) as client:
        router = _Router(rank.info(), client.snapshot)
        await router.until(rank.info().state.last_seq)
        await asyncio.to_thread(rank.prepare, work)
        started, cpu = time.perf_counter(), cpu_s()
        published = await asyncio.to_thread(rank.publish)
        await router.until(published.last_seq)
        wall = time.perf_counter() - started
        assert router.index.num_blocks_of(0) <= work.capacity
        await router.close()
        return Stream(published, wall, cpu_s() - cpu)


async def measure_gap(rank: RankProcess, work: Work, num_batches: int, *, replay: bool) -> float:
    """Seconds from the batch that shows that `num_batches` of `work` are missing until the view is exact.

    The first snapshot is given from before them; without `replay` only a second one helps.
    """
    async with _recovery(rank) as client:
        before = await client.snapshot()
        await asyncio.to_thread(rank.prepare, replace(work, num_batches=num_batches))
        await asyncio.to_thread(rank.publish)
        snapshots = [before]

        async def snapshot() -> CacheSnapshot:
            return snapshots.pop() if snapshots else await client.snapshot()

        info = rank.info()
        router = _Router(info if replay else _without_replay(info), snapshot)
        await router.until(before.seq)
        await asyncio.to_thread(rank.prepare, replace(work, num_batches=1))
        started = time.perf_counter()
        shown = await asyncio.to_thread(rank.publish)
        await router.until(shown.last_seq)
        seconds = time.perf_counter() - started
        await router.close()
        return seconds


async def measure_load(rank: RankProcess, num_blocks: int) -> float:
    """Seconds from asking for a snapshot of `num_blocks` blocks over ZMQ until the index has the last one."""
    rank.fill(num_blocks)
    async with _recovery(rank) as client:
        started = time.perf_counter()
        router = _Router(rank.info(), client.snapshot)
        await router.until(rank.info().state.last_seq)
        seconds = time.perf_counter() - started
        assert router.index.num_blocks_of(0) >= num_blocks
        await router.close()
        return seconds


async def measure_memory(rank: RankProcess, num_blocks: int) -> float:
    """Bytes per block that a router keeps, all of its subscriber and index counted."""
    rank.fill(num_blocks)
    async with _recovery(rank) as client:
        gc.collect()
        tracemalloc.start()
        router = _Router(rank.info(), client.snapshot)
        await router.until(rank.info().state.last_seq)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        num_held = router.index.num_blocks_of(0)
        await router.close()
        return kept / num_held


@asynccontextmanager
async def _recovery(rank: RankProcess) -> AsyncIterator[RecoveryClient]:
    with zmq.asyncio.Context() as context:
        endpoint = rank.info().address.replay_endpoint
        assert endpoint is not None
        client = RecoveryClient(context, endpoint, timeout_s=30.0)
        yield client
        client.close()
