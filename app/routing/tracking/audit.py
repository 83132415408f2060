"""Compares what a router believes of a rank's cache with the cache itself, block by block.

    router's batches   … a │ a+1 … s │ s+1 … b        a: applied when the audit began
    rank's snapshot    ────────────▶ s                s: the last batch in it
    expected at b      snapshot, then s+1 … b         b: applied when they are compared

A cache moves while its snapshot travels. So the batches that the router applies meanwhile are written down;
those after the snapshot's number are applied to the snapshot too, and both sides are compared at one number,
in one step of the event loop. (Of these last batches only the bookkeeping is audited; the next snapshot has
them.) Only a router that loads the rank again meanwhile has no such number: the audit is repeated, and in
the end called moving, never different.

The snapshot's blocks are kept as a plain set: the audit shares no bookkeeping with the index that it audits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from app.errors import WireError
from app.events.batch_codec import decode_batch
from app.events.following.sync_status import Trust
from app.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, CacheEvent
from app.events.snapshot import CacheSnapshot
from app.routing.index.index_writer import ROUTED_MEDIA, Journal
from app.routing.index.prefix_index import PrefixIndex
from app.routing.tracking.followed_rank import FollowedRank
from app.routing.tracking.tracker import SnapshotFetcher, Tracker

MAX_EXAMPLES = 10
"""Hashes shown of each kind of difference."""
_MAX_ATTEMPTS = 5
_SETTLE_TIMEOUT_S = 2.0
"""Longer than a router takes to find that the last batches before a pause were lost."""
_POLL_S = 0.01
_AT_ONCE = 8
"""Ranks audited at the same time, for the memory that two contents take."""

Verdict = Literal["equal", "different", "moving", "no answer", "not followed"]


@dataclass(frozen=True)
class RankAudit:
    """One rank as one router holds it, beside what the rank holds.

    Attributes:
        rank: its number.
        verdict: "moving" and "no answer" say that they couldn't be compared, "not followed" that this router
            holds nothing of the rank, for want of a rank or of its events.
        reason: why not, or null.
        trust: the router's in the rank's cache; null where there is no such rank. One that is partial is
            compared as all are: by what the rank has published of its cache.
        applied_seq: the last batch on both sides.
        snapshot_seq: the last batch in the rank's snapshot.
        num_router_blocks: blocks that the router's index has for the rank.
        num_rank_blocks: blocks that the rank holds.
        num_missing: blocks that the rank holds and the router doesn't know.
        num_extra: blocks that the router believes in and the rank doesn't hold.
        missing: up to `MAX_EXAMPLES` hashes of the former.
        extra: and of the latter.
    """

    rank: int
    verdict: Verdict
    reason: str | None = None
    trust: Trust | None = None
    applied_seq: int | None = None
    snapshot_seq: int | None = None
    num_router_blocks: int | None = None
    num_rank_blocks: int | None = None
    num_missing: int | None = None
    num_extra: int | None = None
    missing: Sequence[int] = ()
    extra: Sequence[int] = ()

    @property
    def equal(self) -> bool | None:
        """Whether both sides hold the same blocks; None where they couldn't be compared."""
        return {"equal": True, "different": False}.get(self.verdict)


class _MovingError(Exception):
    """The two sides have no sequence number in common yet."""


class _NoSnapshotError(Exception):
    """The rank doesn't say what it holds."""


class Auditor:
    """Audits the ranks that `tracker` follows into `index`. On the tracker's event loop.

    Args:
        tracker: the ranks to compare.
        index: what is compared.
        fetch_snapshot: asks a replica for its cache's content; may fail.
        snapshot_timeout_s: how long a snapshot may take.
        pause_s: between two attempts.
    """

    def __init__(
        self,
        tracker: Tracker,
        index: PrefixIndex,
        fetch_snapshot: SnapshotFetcher,
        *,
        snapshot_timeout_s: float = 5.0,
        pause_s: float = 0.5,
    ) -> None:
        self._tracker = tracker
        self._index = index
        self._fetch_snapshot = fetch_snapshot
        self._snapshot_timeout_s = snapshot_timeout_s
        self._pause_s = pause_s
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def audit(self, ranks: Iterable[int]) -> list[RankAudit]:
        """An audit of each rank, in their order; whatever happens to one, the others are audited."""
        return await asyncio.gather(*map(self._audit, ranks))

    async def _audit(self, rank: int) -> RankAudit:
        async with self._room:
            audit = await self._attempt(rank)
            for _ in range(_MAX_ATTEMPTS - 1):
                if audit.verdict != "moving":
                    break
                await asyncio.sleep(self._pause_s)
                audit = await self._attempt(rank)
            return audit

    async def _attempt(self, rank: int) -> RankAudit:
        followed = self._tracker.followed(rank)
        if followed is None:
            return RankAudit(rank, "not followed", "this router knows no such rank")
        status = followed.status
        if not followed.is_publishing:
            return RankAudit(rank, "not followed", status.reason, status.state)
        try:
            return await self._compare(rank, followed)
        except _NoSnapshotError as error:
            return RankAudit(rank, "no answer", str(error), status.state, status.applied_seq)
        except _MovingError as error:
            return RankAudit(rank, "moving", str(error), status.state, status.applied_seq)

    async def _compare(self, rank: int, followed: FollowedRank) -> RankAudit:
        first = followed.status.applied_seq
        if first < 0:
            raise _MovingError(f"the router is {followed.status.state}: {followed.status.reason}")
        with followed.journal() as journal:
            snapshot = await self._snapshot(followed)
            expected = await asyncio.to_thread(_blocks_in, snapshot)
            await _until_applied(followed, journal, snapshot.seq)
            _check(followed, journal, snapshot, first)
            # From the check to here nothing has run in between: one moment.
            status, held = followed.status, self._index.blocks_of(rank)
            later = journal.batches[snapshot.seq - first :]
        missing, extra = await asyncio.to_thread(_difference, expected, later, held)
        return RankAudit(
            rank=rank,
            verdict="different" if missing or extra else "equal",
            trust=status.state,
            applied_seq=status.applied_seq,
            snapshot_seq=snapshot.seq,
            num_router_blocks=len(held),
            num_rank_blocks=len(expected),
            num_missing=len(missing),
            num_extra=len(extra),
            missing=sorted(missing)[:MAX_EXAMPLES],
            extra=sorted(extra)[:MAX_EXAMPLES],
        )

    async def _snapshot(self, followed: FollowedRank) -> CacheSnapshot:
        try:
            async with asyncio.timeout(self._snapshot_timeout_s):
                return await self._fetch_snapshot(followed.description.replica_id)
        except TimeoutError:
            raise _NoSnapshotError(f"no snapshot within {self._snapshot_timeout_s:g} s") from None
        except Exception as error:  # whatever the rank or its transport raises
            # Of a failure elsewhere Ray makes a whole traceback: what happened is its last line.
            *_, last_line = ["", *str(error).strip().splitlines()]
            raise _NoSnapshotError(f"no snapshot: {last_line}") from error


async def _until_applied(followed: FollowedRank, journal: Journal, seq: int) -> None:
    """Wait until the router has applied batch `seq`, too; in vain if it has lost it and doesn't notice."""
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    while followed.status.applied_seq < seq and not journal.is_void:
        if time.monotonic() > deadline:
            raise _MovingError(
                f"the router has applied batch {followed.status.applied_seq}, the snapshot has {seq}"
            )
        await asyncio.sleep(_POLL_S)


def _check(followed: FollowedRank, journal: Journal, snapshot: CacheSnapshot, first: int) -> None:
    """Raises `_MovingError` unless the journal has all batches after `first`, of the snapshot's publisher."""
    publisher = followed.description.publisher
    if publisher is None or snapshot.epoch != publisher.state.epoch:
        raise _MovingError("the rank has a new publisher")
    if snapshot.seq < first:
        raise _MovingError(f"the router has applied batch {first}, the snapshot has only {snapshot.seq}")
    if journal.is_void or len(journal.batches) != followed.status.applied_seq - first:
        raise _MovingError("the router loaded the rank again")


def _blocks_in(snapshot: CacheSnapshot) -> set[int]:
    blocks: set[int] = set()
    try:
        for payload in snapshot.payloads:
            _apply(blocks, decode_batch(payload, token_ids=False).events)
    except WireError as error:
        raise _NoSnapshotError(f"a snapshot that can't be read: {error}") from None
    return blocks


def _difference(
    expected: set[int], later: Sequence[Sequence[CacheEvent]], held: set[int]
) -> tuple[set[int], set[int]]:
    """Blocks of `expected`, brought up to date by the `later` batches, that aren't held; and the reverse."""
    for events in later:
        _apply(expected, events)
    return expected - held, held - expected


def _apply(blocks: set[int], events: Sequence[CacheEvent]) -> None:
    for event in events:
        match event:
            case BlockStored(medium=medium) if medium in ROUTED_MEDIA:
                blocks.update(event.block_hashes)
            case BlockRemoved(medium=medium) if medium in ROUTED_MEDIA:
                blocks.difference_update(event.block_hashes)
            case AllBlocksCleared():
                blocks.clear()
