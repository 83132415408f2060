"""Waiting until a subscriber has what its rank has published."""

from __future__ import annotations

from collections.abc import Callable

from app.events.following.subscriber import RankSubscriber
from tests.support.deadlines import comes_true
from tests.support.events.blocks import Blocks
from tests.support.events.ranks import LossyRank, Rank

Follow = Callable[..., RankSubscriber]
"""Starts a subscriber: what to dial, the rank that gives snapshots, the sink, and options."""


def is_exact(subscriber: RankSubscriber) -> bool:
    return subscriber.status.state == "exact"


async def until_live(rank: LossyRank, subscriber: RankSubscriber) -> None:
    """Return once live batches reach the subscriber: a subscription takes effect some time later."""

    async def is_live() -> bool:
        if not is_exact(subscriber):
            return False
        resyncs = subscriber.status.resyncs
        rank.step()
        arrived = await comes_true(lambda: subscriber.status.applied_seq == rank.seq, timeout_s=0.1)
        # After a resync it may have come in a snapshot, over a connection that receives nothing yet.
        return arrived and subscriber.status.resyncs == resyncs

    assert await comes_true(is_live), subscriber.status


async def agree(subscriber: RankSubscriber, rank: LossyRank | Rank, sink: Blocks) -> None:
    """The subscriber gets exact at the last batch of the rank, which reports its state as in service."""

    def is_there() -> bool:
        subscriber.observe(rank.epoch, rank.seq)
        return is_exact(subscriber) and subscriber.status.applied_seq == rank.seq

    assert await comes_true(is_there), subscriber.status
    assert sink.hashes == rank.truth.hashes
