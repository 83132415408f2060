"""Tracker with real publishers on loopback sockets: who is alive, and whose blocks and load count."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import msgspec
import pytest

from app.config import RoutingConfig
from app.errors import EndpointInUseError
from app.events.config import KvEventsConfig
from app.events.following.sync_status import SyncStatus
from app.events.publisher_info import PublisherAddress, PublisherInfo, PublisherState
from app.events.publishing.publisher import EventPublisher
from app.events.schema import BlockRemoved, BlockStored, LoadStat
from app.events.snapshot import CachedBlock, CacheSnapshot
from app.hashing import chain, wire_hash
from app.routing.decisions.chooser import Chooser, Prompt
from app.routing.index.prefix_index import PrefixIndex
from app.routing.load.load_book import LoadBook
from app.routing.tracking.description import RankDescription
from app.routing.tracking.tracker import MAX_MISSED_POLLS, Tracker
from tests.support.depths import depth_by_rank

BLOCK_SIZE = 4
MAX_PROMPT = 1000
DISABLED = PublisherInfo(
    PublisherAddress(0, "", 0, None, None, "", None, BLOCK_SIZE), PublisherState("", -1, "disabled")
)
DEADLINE_S = 10.0


def hashes(first_token: int, num_blocks: int) -> list[int]:
    tokens = range(first_token, first_token + num_blocks * BLOCK_SIZE)
    return [wire_hash(digest) for digest in chain(tokens, BLOCK_SIZE)]


def stat(rank: int = 0, *, waiting_tokens: int = 0, prefilled: int = 0) -> LoadStat:
    return LoadStat(0, 0, 0, 1000, rank, waiting_tokens, 0, 8, prefilled, prefilled * 1000)


def description(rank: int, replica_id: str, load: LoadStat | None = None) -> RankDescription:
    """Of a rank that publishes nothing."""
    return RankDescription(rank, replica_id, None, load or stat(rank), MAX_PROMPT)


async def until(
    condition: Callable[[], bool], between: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)
) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.005)
        await between()


class LiveRank:
    """A replica's publishing half: what it holds, its real publisher, and its answers."""

    _ids = itertools.count()

    def __init__(self, rank: int = 0, port: int | None = None) -> None:
        self.rank = rank
        self.replica_id = f"replica-{next(self._ids)}"
        self.held: dict[int, int | None] = {}
        """Held block → its parent."""
        self.load = stat(rank)
        self.publisher = self.start_publisher(port)

    @property
    def port(self) -> int:
        """Of rank 0's events."""
        return self.publisher.info("127.0.0.1").address.event_port - self.rank

    def start_publisher(self, port: int | None) -> EventPublisher:
        while True:
            base = port or random.randrange(20_000, 32_000, 8)
            config = KvEventsConfig(endpoint=f"tcp://127.0.0.1:{base}", topic="kv")
            publisher = EventPublisher(
                config,
                dp_rank=self.rank,
                dp_size=2,
                block_size=BLOCK_SIZE,
                bind_timeout_s=DEADLINE_S if port else 0.0,
            )
            try:
                publisher.start()
            except EndpointInUseError:
                if port:
                    raise
            else:
                return publisher

    def store(self, block_hashes: list[int], medium: str = "GPU") -> None:
        if medium == "GPU":
            self.held.update(zip(block_hashes, [None, *block_hashes], strict=False))
        tokens = [0] * len(block_hashes) * BLOCK_SIZE
        self.publisher.publish([BlockStored(block_hashes, None, tokens, BLOCK_SIZE, medium=medium)])

    def remove(self, block_hashes: list[int]) -> None:
        for block_hash in block_hashes:
            del self.held[block_hash]
        self.publisher.publish([BlockRemoved(block_hashes, "GPU")])

    def describe(self) -> RankDescription:
        return RankDescription(
            self.rank, self.replica_id, self.publisher.info("127.0.0.1"), self.load, MAX_PROMPT
        )


class Fixture:
    """A tracker with everything it writes to, and live ranks that answer its snapshot requests."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self.load = LoadBook(RoutingConfig(reservation_timeout_s=5.0, initial_prefill_tokens_per_s=1000.0))
        self.tracker = Tracker(self.index, self.load, self.fetch_snapshot)
        self.chooser = Chooser(self.index, self.load, "predicted_ttft", dp_size=2)
        self.ranks: dict[str, LiveRank] = {}
        self.seen: tuple[LiveRank, ...] = ()

    def start(self, rank: int = 0, port: int | None = None) -> LiveRank:
        live = LiveRank(rank, port)
        self.ranks[live.replica_id] = live
        return live

    async def fetch_snapshot(self, replica_id: str) -> CacheSnapshot:
        live = self.ranks[replica_id]
        blocks = [CachedBlock(block_hash, parent) for block_hash, parent in live.held.items()]
        return live.publisher.snapshot(live.publisher.content(blocks))

    async def look(self, *ranks: LiveRank) -> None:
        self.seen = ranks
        await self.tracker.update([live.describe() for live in ranks])

    async def until_known(self, live: LiveRank) -> None:
        """Looks again and again, as a router does.

        A batch published just after a subscriber has connected may not reach it: only looks tell of that.
        """
        await until(
            lambda: (
                self.tracker.alive().get(live.rank) == "exact"
                and self.index.blocks_of(live.rank) == set(live.held)
            ),
            lambda: self.look(*self.seen),
        )

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


@pytest.fixture
async def world() -> AsyncIterator[Fixture]:
    world = Fixture()
    yield world
    await world.tracker.close()
    for live in world.ranks.values():
        live.publisher.close()


async def test_follows_snapshot_then_events(world: Fixture) -> None:
    live = world.start()
    live.store(hashes(0, 5))
    await world.look(live)
    await world.until_known(live)
    live.store(hashes(1000, 3))
    live.remove(hashes(0, 5)[3:])
    await world.until_known(live)
    assert depth_by_rank(world.index, hashes(0, 5)) == {0: 3}
    assert depth_by_rank(world.index, hashes(1000, 3)) == {0: 3}
    (member,) = world.tracker.members()
    assert (member.rank, member.replica_id, member.status.state) == (0, live.replica_id, "exact")
    assert member.num_blocks == 6
    world.index.check_integrity()


async def test_load_comes_by_itself_and_acknowledges_reservations(world: Fixture) -> None:
    live = world.start()
    await world.look(live)
    await world.until_known(live)
    prompt = Prompt("a", hashes(0, 5), 20, BLOCK_SIZE)
    world.chooser.choose(prompt, world.tracker.alive(), now=0.0)
    assert world.load.waiting_tokens(0) == 20

    def reported() -> bool:
        # Said again until heard: the load socket may still be connecting.
        live.publisher.publish_load(stat(waiting_tokens=17), acknowledged=["a"])
        return world.load.num_reservations == 0

    await until(reported)
    assert world.load.waiting_tokens(0) == 17


async def test_a_replaced_rank_is_credited_nothing_of_its_predecessor(world: Fixture) -> None:
    old = world.start()
    old.store(hashes(0, 5))
    await world.look(old)
    await world.until_known(old)
    world.chooser.choose(Prompt("a", [], 20, BLOCK_SIZE), world.tracker.alive(), now=0.0)

    new = world.start()
    new.store(hashes(1000, 2))
    await world.look(new)
    assert depth_by_rank(world.index, hashes(0, 5)) == {}
    assert (world.load.num_reservations, world.load.waiting_tokens(0)) == (0, 0)
    await world.until_known(new)
    assert world.tracker.replica_id(0) == new.replica_id

    # The old publisher still talks; nobody listens.
    old.store(hashes(5000, 2))
    new.store(hashes(2000, 2))
    await world.until_known(new)
    assert depth_by_rank(world.index, hashes(5000, 2)) == {}


async def test_a_replica_that_takes_over_the_same_port_is_followed(world: Fixture) -> None:
    old = world.start()
    old.store(hashes(0, 5))
    await world.look(old)
    await world.until_known(old)
    old.publisher.close()
    new = world.start(port=old.port)
    new.store(hashes(1000, 2))
    await world.look(new)
    assert depth_by_rank(world.index, hashes(0, 5)) == {}
    await world.until_known(new)


async def test_a_publisher_started_anew_in_the_same_replica_is_followed(world: Fixture) -> None:
    live = world.start()
    live.store(hashes(0, 5))
    await world.look(live)
    await world.until_known(live)
    port = live.port
    live.publisher.close()
    live.held.clear()
    live.publisher = live.start_publisher(port)
    await world.look(live)
    assert world.index.num_blocks == 0
    live.store(hashes(1000, 2))
    await world.until_known(live)


async def test_lost_last_batches_are_noticed_from_descriptions(world: Fixture) -> None:
    live = world.start()
    await world.look(live)
    await world.until_known(live)
    # The rank says that it has published a batch that never arrives.
    live.held.update(dict.fromkeys(hashes(0, 2)))
    described = live.describe()
    assert described.publisher is not None
    state = described.publisher.state
    ahead = PublisherInfo(
        described.publisher.address, msgspec.structs.replace(state, last_seq=state.last_seq + 1)
    )
    deadline = time.monotonic() + DEADLINE_S
    while world.index.blocks_of(0) != set(live.held):
        assert time.monotonic() < deadline, "not in time"
        await world.tracker.update([replace(described, publisher=ahead)])
        await asyncio.sleep(0.05)


async def test_blocks_in_other_media_are_not_credited(world: Fixture) -> None:
    live = world.start()
    await world.look(live)
    await world.until_known(live)
    live.store(hashes(0, 2), medium="CPU")
    live.store(hashes(1000, 2))
    await world.until_known(live)
    assert depth_by_rank(world.index, hashes(0, 2)) == {}


async def test_copies_are_counted_as_vllm_publishes_them(world: Fixture) -> None:
    """It stores and removes the same block once per request that has it."""
    live = world.start()
    await world.look(live)
    await world.until_live(live)
    chained = hashes(0, 3)
    live.store(chained)
    live.store(chained)
    live.publisher.publish([BlockRemoved(chained[1:], "GPU")])
    live.store(hashes(500, 1))
    await world.until_known(live)
    assert depth_by_rank(world.index, chained) == {0: 3}
    live.remove(chained[1:])
    await world.until_known(live)
    assert depth_by_rank(world.index, chained) == {0: 1}


@pytest.mark.parametrize("publisher", [None, DISABLED])
async def test_a_rank_that_publishes_nothing_is_routed_by_its_described_load(
    world: Fixture, publisher: object
) -> None:
    def silent(load: LoadStat) -> RankDescription:
        return RankDescription(0, "silent", publisher, load, MAX_PROMPT)  # type: ignore[arg-type]

    await world.tracker.update([silent(stat(waiting_tokens=5)), description(1, "other")])
    assert world.tracker.alive() == {0: "stale", 1: "stale"}
    assert {member.status.reason for member in world.tracker.members()} == {"no events published"}
    assert world.load.waiting_tokens(0) == 5
    prompt = Prompt("a", hashes(0, 2), 8, BLOCK_SIZE)
    assert world.chooser.choose(prompt, world.tracker.alive(), now=0.0).rank == 1
    await world.tracker.update([silent(stat(waiting_tokens=0)), description(1, "other")])
    assert world.load.waiting_tokens(0) == 0


async def test_a_rank_that_acknowledges_nothing_counts_a_request_once(world: Fixture) -> None:
    async def look(waiting_tokens: int) -> None:
        await world.tracker.update([description(0, "silent", stat(waiting_tokens=waiting_tokens))])

    await look(0)
    world.chooser.choose(Prompt("a", [], 8, BLOCK_SIZE), world.tracker.alive(), now=0.0)
    await look(0)  # may have been asked before the request came to the rank
    assert world.load.waiting_tokens(0) == 8
    await look(8)
    assert world.load.waiting_tokens(0) == 8
    await look(0)
    assert world.load.waiting_tokens(0) == 0
    assert world.load.num_requests(0) == 0


async def test_a_description_older_than_the_last_report_is_ignored(world: Fixture) -> None:
    await world.tracker.update([description(0, "a", stat(waiting_tokens=5, prefilled=500))])
    await world.tracker.update([description(0, "a", stat(waiting_tokens=9, prefilled=400))])
    assert world.load.waiting_tokens(0) == 5


async def test_one_slow_answer_is_no_death_but_many_are(world: Fixture) -> None:
    live = world.start()
    live.store(hashes(0, 2))
    await world.look(live)
    await world.until_known(live)
    for _ in range(MAX_MISSED_POLLS):
        await world.look()
    assert world.tracker.alive() == {0: "exact"}
    await world.look(live)
    for _ in range(MAX_MISSED_POLLS + 1):
        await world.look()
    assert world.tracker.alive() == {}
    assert world.index.num_blocks == 0
    await world.look(live)
    await world.until_known(live)


async def test_a_failed_rank_is_dropped_at_once_and_back_when_it_still_answers(world: Fixture) -> None:
    live = world.start()
    live.store(hashes(0, 2))
    await world.look(live)
    await world.until_known(live)
    world.tracker.mark_failed(0, live.replica_id)
    assert world.tracker.alive() == {}
    assert world.index.num_blocks == 0
    # This look may have begun before the failure.
    await world.look(live)
    assert world.tracker.alive() == {}
    await world.look(live)
    await world.until_known(live)


async def test_a_failed_ranks_replacement_is_followed_at_once(world: Fixture) -> None:
    await world.tracker.update([description(0, "a")])
    world.tracker.mark_failed(0, "a")
    await world.tracker.update([description(0, "a"), description(0, "b")])
    assert world.tracker.replica_id(0) == "b"


async def test_a_late_report_of_a_predecessors_death_changes_nothing(world: Fixture) -> None:
    await world.tracker.update([description(0, "b")])
    world.tracker.mark_failed(0, "a")
    world.tracker.mark_failed(7, "a")
    assert world.tracker.alive() == {0: "stale"}


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
async def test_a_rank_stays_with_its_replica_while_two_claim_it(
    world: Fixture, order: tuple[str, str]
) -> None:
    await world.tracker.update([description(0, "old")])
    await world.tracker.update([description(0, replica_id) for replica_id in order])
    assert world.tracker.replica_id(0) == "old"
    await world.tracker.update([description(0, "new")])
    assert world.tracker.replica_id(0) == "new"


async def test_two_ranks_are_kept_apart(world: Fixture) -> None:
    first = world.start(rank=0)
    second = world.start(rank=1)
    first.store(hashes(0, 4))
    second.store(hashes(0, 2))
    await world.look(first, second)
    await world.until_known(first)
    await world.until_known(second)
    assert depth_by_rank(world.index, hashes(0, 4)) == {0: 4, 1: 2}
    await world.tracker.update([first.describe(), description(1, "replacement")])
    assert depth_by_rank(world.index, hashes(0, 4)) == {0: 4}


async def test_closing_leaves_nothing_behind(world: Fixture) -> None:
    before = asyncio.all_tasks()
    live = world.start()
    live.store(hashes(0, 2))
    await world.look(live)
    await world.until_known(live)
    await world.tracker.close()
    assert asyncio.all_tasks() == before
    assert world.tracker.members() == []
    assert (world.index.num_blocks, world.load.num_reservations) == (0, 0)
