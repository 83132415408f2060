"""The subscriber against real publishers, and against ranks whose network loses chosen batches."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.events.following.subscriber import RankSubscriber
from app.events.schema import AllBlocksCleared, CacheEvent, encode_seq
from app.events.snapshot import CacheSnapshot
from tests.support.deadlines import comes_true
from tests.support.events.blocks import Blocks, removed, stored
from tests.support.events.ranks import LossyRank, MakeLossyRank, MakeRank
from tests.support.events.waiting import Follow, agree, until_live

FAST_LOSS = {"delivery_timeout_s": 0.05}
"""So that a lost batch is noticed soon."""


async def test_a_late_joiner_gets_a_snapshot_and_then_every_batch(
    make_rank: MakeRank, follow: Follow
) -> None:
    rank = make_rank()
    for number in range(30):
        rank.step(stored(number), removed(number - 5))
    sink = Blocks()
    subscriber = follow(rank.info, rank, sink)
    assert subscriber.status.state == "syncing"
    await agree(subscriber, rank, sink)
    for number in range(30, 600):
        rank.step(stored(number), removed(number - 5))
        if number % 50 == 0:
            await agree(subscriber, rank, sink)
    rank.step(AllBlocksCleared(), stored(1))
    await agree(subscriber, rank, sink)
    assert subscriber.status.bad_messages == 0


async def test_batches_published_while_the_snapshot_travels_are_applied_after_it(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    rank = lossy_rank()
    rank.step(stored(1, 2))
    asked, may_arrive = asyncio.Event(), asyncio.Event()

    async def slow_snapshot() -> CacheSnapshot:
        snapshot = await rank.snapshot()
        asked.set()
        await may_arrive.wait()
        return snapshot

    sink = Blocks()
    subscriber = follow(rank.info(), rank, sink, fetch_snapshot=slow_snapshot, **FAST_LOSS)
    await asked.wait()
    rank.step(removed(1))
    rank.step(stored(3))
    assert (subscriber.status.state, sink.hashes) == ("syncing", set())
    may_arrive.set()
    await agree(subscriber, rank, sink)
    assert sink.hashes == {2, 3}


# ---- messages that can't be applied


@pytest.mark.parametrize(
    "frames",
    [[b""], [b"", b"", b"", b""], [b"", b"short", b""], [b"topic", encode_seq(0), b""]],
    ids=["one frame", "four frames", "short seq", "other topic"],
)
async def test_a_message_of_another_shape_is_counted_and_loses_nothing(
    lossy_rank: MakeLossyRank, follow: Follow, frames: list[bytes]
) -> None:
    rank, sink = lossy_rank(), Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await until_live(rank, subscriber)
    before = subscriber.status
    rank.send(frames)
    rank.step(stored(1))
    await agree(subscriber, rank, sink)
    after = subscriber.status
    assert (after.bad_messages, after.gaps, after.resyncs) == (1, before.gaps, before.resyncs)


async def test_batches_of_another_rank_are_never_applied(lossy_rank: MakeLossyRank, follow: Follow) -> None:
    rank, sink = lossy_rank(), Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await until_live(rank, subscriber)
    rank.step(stored(1), dp_rank=5)
    rank.truth = Blocks()
    await agree(subscriber, rank, sink)
    assert sink.hashes == set()
    assert subscriber.status.bad_messages == 1


async def test_a_sink_that_fails_costs_a_snapshot(lossy_rank: MakeLossyRank, follow: Follow) -> None:
    class Fragile(Blocks):
        fails = False

        def apply(self, events: Sequence[CacheEvent]) -> None:
            if self.fails:
                self.fails = False
                raise RuntimeError("sink broke")
            super().apply(events)

    rank, sink = lossy_rank(), Fragile()
    subscriber = follow(rank.info(), rank, sink)
    await until_live(rank, subscriber)
    sink.fails = True
    rank.step(stored(1, 2))
    await agree(subscriber, rank, sink)
    assert "sink broke" in subscriber.status.reason


# ---- another kind of publisher


VLLM = {"token_ids": [5, 6], "block_size": 1, "lora_id": None, "medium": "GPU", "group_idx": 0}


@pytest.mark.parametrize(
    ("stored", "removed", "left"),
    [
        pytest.param(
            {"type": "BlockStored", "block_hashes": [2**64 - 1, 7], "parent_block_hash": 2**63} | VLLM,
            {"type": "BlockRemoved", "block_hashes": [7], "medium": "GPU", "group_idx": 0},
            {-1},
            id="unsigned hashes",
        ),
        pytest.param(
            {"type": "BlockStored", "block_hashes": [b"\xff" * 32, b"\x01" * 32], "parent_block_hash": None}
            | VLLM,
            {"type": "BlockRemoved", "block_hashes": [b"\xff" * 32], "medium": "GPU"},
            {0x0101010101010101},
            id="raw hashes",
        ),
        pytest.param(
            ["BlockStored", [2**64 - 1, 7], None, [5, 6], 1, None, "GPU", "a-lora", None],
            ["BlockRemoved", [2**64 - 1], "GPU", 0],
            {7},
            id="arrays",
        ),
    ],
)
async def test_a_publisher_of_vllm_is_followed(
    lossy_rank: MakeLossyRank, follow: Follow, stored: Any, removed: Any, left: set[int]
) -> None:
    rank, sink = lossy_rank(), Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await until_live(rank, subscriber)
    for event in (stored, removed):
        rank.seq += 1
        rank.send([b"", encode_seq(rank.seq), msgspec.msgpack.encode([time.time(), [event], 0])])
    assert await comes_true(lambda: subscriber.status.applied_seq == rank.seq), subscriber.status
    assert sink.hashes == left
    assert subscriber.status.bad_messages == 0


# ---- the event loop


async def test_a_burst_leaves_the_event_loop_to_others(lossy_rank: MakeLossyRank, follow: Follow) -> None:
    rank, sink = lossy_rank(), Blocks()
    subscriber = follow(rank.info(), rank, sink, **FAST_LOSS)
    await until_live(rank, subscriber)
    for number in range(5000):
        rank.step(stored(number))
    applied_at_turns: list[int] = []
    last_seq = rank.seq
    while subscriber.status.applied_seq < last_seq:
        subscriber.observe(rank.epoch, rank.seq)
        applied_at_turns.append(subscriber.status.applied_seq)
        await asyncio.sleep(0)
    await agree(subscriber, rank, sink)
    assert max(after - before for before, after in itertools.pairwise(applied_at_turns)) <= 256


async def test_a_burst_of_big_batches_leaves_the_event_loop_to_others(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    class Slow(Blocks):
        def apply(self, events: Sequence[CacheEvent]) -> None:
            super().apply(events)
            until = time.monotonic() + 0.004
            while time.monotonic() < until:
                pass

    rank, sink = lossy_rank(), Slow()
    subscriber = follow(rank.info(), rank, sink)
    await until_live(rank, subscriber)
    for number in range(100):
        rank.step(stored(number))
    applied_at_turns: list[int] = []
    while subscriber.status.applied_seq < rank.seq:
        applied_at_turns.append(subscriber.status.applied_seq)
        await asyncio.sleep(0)
    assert max(after - before for before, after in itertools.pairwise(applied_at_turns)) <= 4


async def test_closing_ends_the_tasks_and_can_be_repeated(make_rank: MakeRank, follow: Follow) -> None:
    rank, sink = make_rank(), Blocks()
    subscriber = follow(rank.info, rank, sink)
    rank.step(stored(1))
    await agree(subscriber, rank, sink)
    await subscriber.close()
    await subscriber.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---- any history


hashes = st.integers(0, 7)
steps = st.lists(
    st.tuples(st.sampled_from(["store", "remove", "clear", "restart"]), hashes, st.booleans()), max_size=25
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, replay=st.booleans(), capacity=st.integers(1, 8))
def test_whatever_is_stored_removed_cleared_lost_or_restarted_the_views_agree_in_the_end(
    steps: list[tuple[str, int, bool]], replay: bool, capacity: int
) -> None:
    async def run() -> None:
        rank, sink = LossyRank(replay=replay, capacity=capacity), Blocks()
        subscriber = RankSubscriber(
            rank.info(),
            sink,
            fetch_snapshot=rank.snapshot,
            on_load=lambda stat: None,
            on_acknowledged=lambda ids: None,
            delivery_timeout_s=0.01,
        )
        subscriber.start()
        for kind, block_hash, lost in steps:
            match kind:
                case "store":
                    rank.step(stored(block_hash, block_hash + 8), lost=lost)
                case "remove":
                    rank.step(removed(block_hash), lost=lost)
                case "clear":
                    rank.step(AllBlocksCleared(), lost=lost)
                case "restart":
                    rank.restart()
                    subscriber.observe(rank.epoch, rank.seq)
            await asyncio.sleep(0)
        await agree(subscriber, rank, sink)
        await subscriber.close()
        rank.close()

    asyncio.run(run())
