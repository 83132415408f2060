"""Ranks that are a real publisher on loopback sockets and no engine, and what a router follows them with."""

from __future__ import annotations

import itertools

from app.events.config import KvEventsConfig
from app.events.following.sync_status import SyncStatus, Trust
from app.events.publishing.publisher import EventPublisher
from app.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, LoadStat
from app.events.snapshot import CachedBlock, CacheSnapshot
from app.hashing import chain, wire_hash
from app.routing.tracking.description import RankDescription
from app.routing.tracking.tracker import Tracker
from tests.support.deadlines import until
from tests.support.free_ports import find_free_ports
from tests.support.routing.cores import load_stat, new_core, set_routable

BLOCK_SIZE = 4
MAX_PROMPT = 1000
DEADLINE_S = 10.0


def hashes(first_token: int, num_blocks: int) -> list[int]:
    tokens = range(first_token, first_token + num_blocks * BLOCK_SIZE)
    return [wire_hash(digest) for digest in chain(tokens, BLOCK_SIZE)]


def description(rank: int, replica_id: str, load: LoadStat | None = None) -> RankDescription:
    """Of a rank that publishes nothing."""
    return RankDescription(rank, replica_id, None, load or load_stat(rank=rank), MAX_PROMPT)


class LiveRank:
    """A replica's publishing half: what it holds, its real publisher, and its answers."""

    _ids = itertools.count()

    def __init__(self, rank: int = 0, port: int | None = None) -> None:
        self.rank = rank
        self.replica_id = f"replica-{next(self._ids)}"
        self.held: dict[int, int | None] = {}
        """Held block → its parent."""
        self.load = load_stat(rank=rank)
        self.unavailable: str | None = None
        self.partial_cache: str | None = None
        self.publisher = self.start_publisher(port)

    @property
    def port(self) -> int:
        """Of rank 0's events."""
        return self.publisher.info("127.0.0.1").address.event_port - self.rank

    def start_publisher(self, port: int | None) -> EventPublisher:
        """A new one; given `port`, of rank 0's events, it waits until that is free. 0 is any free one."""
        base = find_free_ports(12) if port is None else port
        publisher = EventPublisher(
            KvEventsConfig(endpoint=f"tcp://127.0.0.1:{base}", topic="kv"),
            dp_rank=self.rank,
            dp_size=2,
            block_size=BLOCK_SIZE,
            bind_timeout_s=DEADLINE_S if port else 0.0,
        )
        publisher.start()
        return publisher

    def store(self, block_hashes: list[int], medium: str = "GPU") -> None:
        if medium == "GPU":
            self.held.update(zip(block_hashes, [None, *block_hashes], strict=False))
        tokens = [0] * len(block_hashes) * BLOCK_SIZE
        self.publisher.publish([BlockStored(block_hashes, None, tokens, BLOCK_SIZE, medium=medium)])

    def clear(self) -> None:
        self.held.clear()
        self.publisher.publish([AllBlocksCleared()])

    def remove(self, block_hashes: list[int]) -> None:
        for block_hash in block_hashes:
            del self.held[block_hash]
        self.publisher.publish([BlockRemoved(block_hashes, "GPU")])

    def describe(self) -> RankDescription:
        return RankDescription(
            self.rank,
            self.replica_id,
            self.publisher.info("127.0.0.1"),
            self.load,
            MAX_PROMPT,
            unavailable=self.unavailable,
            partial_cache=self.partial_cache,
        )


class Follower:
    """A core, a tracker that writes to it, and live ranks that answer its snapshot requests."""

    def __init__(self, stall_timeout_s: float = 10.0) -> None:
        self.core = new_core(dp_size=2)
        set_routable(self.core, {})
        self.tracker = Tracker(self.core, self.fetch_snapshot, stall_timeout_s=stall_timeout_s)
        self.ranks: dict[str, LiveRank] = {}
        self.polled: tuple[LiveRank, ...] = ()

    async def close(self) -> None:
        await self.tracker.close()
        for live in self.ranks.values():
            live.publisher.close()

    def start(self, rank: int = 0, port: int | None = None) -> LiveRank:
        live = LiveRank(rank, port)
        self.ranks[live.replica_id] = live
        return live

    async def fetch_snapshot(self, replica_id: str) -> CacheSnapshot:
        live = self.ranks[replica_id]
        blocks = [CachedBlock(block_hash, parent) for block_hash, parent in live.held.items()]
        return live.publisher.snapshot(live.publisher.content(blocks))

    async def poll(self, *ranks: LiveRank) -> None:
        self.polled = ranks
        await self.tracker.update([live.describe() for live in ranks])

    async def until_known(self, live: LiveRank, trust: Trust = "exact") -> None:
        """Polls again and again, as a router does.

        A batch published just after a subscriber has connected may not reach it: only polls show that.
        """

        async def is_known() -> bool:
            await self.poll(*self.polled)
            followed = self.tracker.followed(live.rank)
            is_trusted = followed is not None and followed.status.state == trust
            return is_trusted and self.core.index.blocks_of(live.rank) == set(live.held)

        await until(is_known, f"the blocks of {live.replica_id} are known", DEADLINE_S)

    async def until_live(self, live: LiveRank) -> None:
        """Batches come as messages: what follows is in no snapshot."""
        for number in itertools.count(1):
            before = self.status_of(live)
            live.store(hashes(10_000 * number, 1))
            await self.until_known(live)
            after = self.status_of(live)
            if before is not None and after is not None and before.resyncs == after.resyncs:
                return

    def status_of(self, live: LiveRank) -> SyncStatus | None:
        statuses = (member.status for member in self.tracker.members() if member.rank == live.rank)
        return next((status for status in statuses if status.state == "exact"), None)
