"""Waiting for a subscriber, and never longer than a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from app.events.following.subscriber import RankSubscriber
from tests.support.deadlines import holds_within
from tests.support.events.blocks import Blocks
from tests.support.events.ranks import LossyRank, Rank

Follow = Callable[..., RankSubscriber]
"""Starts a subscriber: what to dial, the rank that gives snapshots, the sink, and options."""


async def holds(condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
    """Whether `condition` came true before the deadline."""
    return await holds_within(timeout_s, condition)


def is_exact(subscriber: RankSubscriber) -> bool:
    return subscriber.status.state == "exact"


async def until_live(rank: LossyRank, subscriber: RankSubscriber) -> None:
    """Return once live batches reach the subscriber: a subscription takes effect in its own time."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if is_exact(subscriber):
            resyncs = subscriber.status.resyncs
            rank.step()
            arrived = await holds(lambda: subscriber.status.applied_seq == rank.seq, timeout_s=0.1)
            # After a resync it may have come in a snapshot, over a connection that receives nothing yet.
            if arrived and subscriber.status.resyncs == resyncs:
                return
        await asyncio.sleep(0.005)
    raise AssertionError(subscriber.status)


async def agree(subscriber: RankSubscriber, rank: LossyRank | Rank, sink: Blocks) -> None:
    """The subscriber gets exact at the last batch of the rank, which reports its state as in service."""

    def is_there() -> bool:
        subscriber.observe(rank.epoch, rank.seq)
        return is_exact(subscriber) and subscriber.status.applied_seq == rank.seq

    assert await holds(is_there), subscriber.status
    assert sink.hashes == rank.truth.hashes
