"""Audits of ranks with real publishers: what differs is found, and what merely moves is no difference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.events.snapshot import CacheSnapshot
from app.routing.tracking.audit import MAX_EXAMPLES, Auditor, RankAudit
from tests.support.routing.live_ranks import Follower, LiveRank, description, hashes


class Audited(Follower):
    """A follower with an auditor, whose snapshots a test can hold up or change."""

    def __init__(self) -> None:
        super().__init__()
        self.auditor = Auditor(
            self.tracker, self.core.index, self.fetch_for_audit, snapshot_timeout_s=0.5, pause_s=0.02
        )
        self.after_fetch: list[asyncio.Event] = []
        self.fetched = asyncio.Event()

    async def fetch_for_audit(self, replica_id: str) -> CacheSnapshot:
        snapshot = await self.fetch_snapshot(replica_id)
        self.fetched.set()
        for event in self.after_fetch:
            await event.wait()
        return snapshot

    async def audit(self, rank: int = 0) -> RankAudit:
        (audit,) = await self.auditor.audit([rank])
        return audit

    async def follow(self, live: LiveRank) -> None:
        await self.poll(live)
        await self.until_live(live)


@pytest.fixture
async def world() -> AsyncIterator[Audited]:
    world = Audited()
    yield world
    await world.close()


async def test_equal_caches_are_equal(world: Audited) -> None:
    live = world.start()
    live.store(hashes(0, 50))
    live.remove(hashes(0, 50)[40:])
    live.store(hashes(5000, 3), medium="CPU")  # not where it can be used
    await world.follow(live)
    audit = await world.audit()
    assert (audit.verdict, audit.equal, audit.reason, audit.trust) == ("equal", True, None, "exact")
    assert audit.num_rank_blocks == audit.num_router_blocks == len(live.held)
    assert audit.applied_seq == audit.snapshot_seq
    assert (audit.num_missing, audit.num_extra, audit.missing, audit.extra) == (0, 0, [], [])


async def test_what_the_router_lacks_or_invents_is_counted_and_named(world: Audited) -> None:
    live = world.start()
    live.store(hashes(0, 30))
    await world.follow(live)
    world.core.index.remove(0, hashes(0, 30)[-20:])
    world.core.index.store(0, hashes(90_000, 2))
    audit = await world.audit()
    assert (audit.verdict, audit.equal, audit.trust) == ("different", False, "exact")
    assert (audit.num_missing, audit.num_extra) == (20, 2)
    assert set(audit.missing) < set(hashes(0, 30)[-20:])
    assert len(audit.missing) == MAX_EXAMPLES
    assert set(audit.extra) == set(hashes(90_000, 2))


async def test_a_cache_that_moves_while_its_snapshot_travels_is_no_difference(world: Audited) -> None:
    live = world.start()
    live.store(hashes(0, 30))
    await world.follow(live)
    arrives = asyncio.Event()
    world.after_fetch.append(arrives)
    auditing = asyncio.create_task(world.audit())
    await world.fetched.wait()
    live.store(hashes(2000, 5))
    live.remove(hashes(0, 30)[20:])
    live.store(hashes(3000, 5))
    await world.until_known(live)
    arrives.set()
    audit = await auditing
    assert (audit.verdict, audit.num_rank_blocks) == ("equal", len(live.held))
    assert audit.applied_seq is not None
    assert audit.snapshot_seq is not None
    assert audit.applied_seq == audit.snapshot_seq + 3


async def test_a_difference_is_found_although_the_cache_moves(world: Audited) -> None:
    live = world.start()
    live.store(hashes(0, 30))
    await world.follow(live)
    arrives = asyncio.Event()
    world.after_fetch.append(arrives)
    auditing = asyncio.create_task(world.audit())
    await world.fetched.wait()
    live.store(hashes(2000, 5))
    await world.until_known(live)
    world.core.index.remove(0, hashes(2000, 5)[4:])
    arrives.set()
    audit = await auditing
    assert (audit.verdict, audit.missing, audit.extra) == ("different", hashes(2000, 5)[4:], [])


async def test_a_snapshot_ahead_of_the_router_is_waited_for(world: Audited) -> None:
    live = world.start()
    await world.follow(live)
    auditing = asyncio.create_task(world.audit())
    # Published before the router's next turn: the snapshot has it, the index not yet.
    live.store(hashes(2000, 5))
    await world.fetched.wait()
    assert set(hashes(2000, 5)).isdisjoint(world.core.index.blocks_of(0))
    audit = await auditing
    assert (audit.verdict, audit.num_router_blocks) == ("equal", len(live.held))


async def test_a_rank_replaced_meanwhile_is_audited_again(world: Audited) -> None:
    old = world.start()
    old.store(hashes(0, 30))
    await world.follow(old)
    arrives = asyncio.Event()
    world.after_fetch.append(arrives)
    auditing = asyncio.create_task(world.audit())
    await world.fetched.wait()
    new = world.start()
    new.store(hashes(7000, 4))
    await world.follow(new)
    arrives.set()
    audit = await auditing
    assert (audit.verdict, audit.num_rank_blocks) == ("equal", len(new.held))


async def test_a_publisher_that_the_router_does_not_know_yet_is_called_moving(world: Audited) -> None:
    live = world.start()
    await world.follow(live)
    fetch = world.fetch_snapshot

    async def of_another_epoch(replica_id: str) -> CacheSnapshot:
        snapshot = await fetch(replica_id)
        return CacheSnapshot("another", snapshot.seq, snapshot.payloads)

    world.auditor = Auditor(world.tracker, world.core.index, of_another_epoch, pause_s=0.0)
    audit = await world.audit()
    assert (audit.verdict, audit.equal, audit.reason) == ("moving", None, "the rank has a new publisher")


async def test_ranks_that_cannot_be_compared_say_why(world: Audited) -> None:
    live = world.start()
    await world.follow(live)
    world.after_fetch.append(asyncio.Event())
    audit = await world.audit()
    assert (audit.verdict, audit.equal, audit.trust) == ("no answer", None, "exact")
    assert audit.reason == "no snapshot within 0.5 s"
    world.after_fetch.clear()
    del world.ranks[live.replica_id]
    world.ranks["closed"] = live
    audit = await world.audit()
    assert (audit.verdict, audit.reason) == ("no answer", f"no snapshot: '{live.replica_id}'")
    audit = await world.audit(1)
    assert (audit.verdict, audit.reason) == ("not followed", "this router knows no such rank")
    await world.tracker.update([description(1, "silent")])
    audit = await world.audit(1)
    assert (audit.verdict, audit.reason, audit.trust) == ("not followed", "no events published", "stale")
