"""The subscriber against real publishers, and against ranks whose network loses chosen batches."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import zmq.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.events.schema import (
    AllBlocksCleared,
    CacheEvent,
    LoadStat,
    encode_seq,
)
from app.events.snapshot import CacheSnapshot

UNSEEN = {"delivery_timeout_s": 0.05}


async def agree(rigs: Any, subscriber: Any, rank: Any, sink: Any) -> None:
    """The subscriber gets exact at the last batch of the rank, which tells of itself as in service."""

    def is_there() -> bool:
        subscriber.observe(rank.epoch, rank.seq)
        return subscriber.status.state == "exact" and subscriber.status.applied_seq == rank.seq

    assert await rigs.holds(is_there), subscriber.status
    assert sink.hashes == rank.truth.hashes


# ---- real publisher, end to end


async def test_a_late_joiner_gets_a_snapshot_and_then_every_batch(
    make_rank: Any, follow: Any, rigs: Any
) -> None:
    rank = make_rank()
    for number in range(30):
        rank.step(rigs.stored(number), rigs.removed(number - 5))
    sink = rigs.Blocks()
    subscriber = follow(rank.publisher.info(""), rank, sink)
    assert subscriber.status.state == "syncing"
    await agree(rigs, subscriber, rank, sink)
    for number in range(30, 600):
        rank.step(rigs.stored(number), rigs.removed(number - 5))
        if number % 50 == 0:
            await agree(rigs, subscriber, rank, sink)
    rank.step(AllBlocksCleared(), rigs.stored(1))
    await agree(rigs, subscriber, rank, sink)
    assert subscriber.status.bad_messages == 0


async def test_batches_published_while_the_snapshot_travels_are_applied_after_it(
    lossy_rank: Any, follow: Any, rigs: Any
) -> None:
    rank = lossy_rank()
    rank.step(rigs.stored(1, 2))
    asked, may_arrive = asyncio.Event(), asyncio.Event()

    async def slow_snapshot() -> CacheSnapshot:
        snapshot = await rank.snapshot()
        asked.set()
        await may_arrive.wait()
        return snapshot

    sink = rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink, fetch_snapshot=slow_snapshot, **UNSEEN)
    await asked.wait()
    rank.step(rigs.removed(1))
    rank.step(rigs.stored(3))
    assert (subscriber.status.state, sink.hashes) == ("syncing", set())
    may_arrive.set()
    await agree(rigs, subscriber, rank, sink)
    assert sink.hashes == {2, 3}


async def test_load_reports_and_acknowledgements_arrive(make_rank: Any, follow: Any, rigs: Any) -> None:
    rank = make_rank()
    loads: list[LoadStat] = []
    acknowledged: list[str] = []
    follow(
        rank.publisher.info(""),
        rank,
        rigs.Blocks(),
        on_load=loads.append,
        on_acknowledged=acknowledged.extend,
    )
    stat = LoadStat(1, 2, 3, 4, 0, 6, 7, 8, 9, 10)

    def arrived() -> bool:
        rank.publisher.publish_load(stat, ["r1", "r2"])
        return bool(loads and acknowledged)

    assert await rigs.holds(arrived)
    assert loads[0] == stat
    assert acknowledged[:2] == ["r1", "r2"]


async def test_a_load_report_of_another_rank_is_a_bad_message(make_rank: Any, follow: Any, rigs: Any) -> None:
    rank = make_rank()
    loads: list[LoadStat] = []
    subscriber = follow(rank.publisher.info(""), rank, rigs.Blocks(), on_load=loads.append)
    stray = LoadStat(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)

    def counted() -> bool:
        rank.publisher.publish_load(stray)
        return subscriber.status.bad_messages > 0

    assert await rigs.holds(counted)
    assert loads == []


async def test_a_callback_that_fails_does_not_stop_the_reports(
    make_rank: Any, follow: Any, rigs: Any
) -> None:
    rank = make_rank()
    calls: list[LoadStat] = []

    def fail(stat: LoadStat) -> None:
        calls.append(stat)
        raise RuntimeError("no")

    follow(rank.publisher.info(""), rank, rigs.Blocks(), on_load=fail)

    def called_twice() -> bool:
        rank.publisher.publish_load(LoadStat(0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
        return len(calls) > 1

    assert await rigs.holds(called_twice)


async def test_a_publisher_restarted_on_the_same_port_is_followed_anew(
    make_rank: Any, follow: Any, rigs: Any, free_ports: Any
) -> None:
    keys = {
        "endpoint": f"tcp://127.0.0.1:{free_ports(3)}",
        "replay_endpoint": f"tcp://127.0.0.1:{free_ports(1)}",
    }
    old = make_rank(**keys)
    ranks = [old]
    old.step(rigs.stored(*range(100)))
    sink = rigs.Blocks()
    subscriber = follow(
        old.publisher.info(""), old, sink, fetch_snapshot=lambda: ranks[-1].snapshot(), connect_timeout_s=0.2
    )
    await agree(rigs, subscriber, old, sink)

    old.publisher.close()
    assert await rigs.holds(lambda: subscriber.status.state == "stale")
    assert sink.hashes == set()

    ranks.append(make_rank(**keys))
    # As many batches as before, so that the sequence numbers alone would tell nothing.
    ranks[-1].step(rigs.stored(7))
    await agree(rigs, subscriber, ranks[-1], sink)
    assert sink.hashes == {7}


async def test_a_gap_left_by_a_full_queue_is_closed(make_rank: Any, follow: Any, rigs: Any) -> None:
    rank = make_rank(max_queue_size=1)
    sink = rigs.Blocks()
    subscriber = follow(rank.publisher.info(""), rank, sink, **UNSEEN)
    await agree(rigs, subscriber, rank, sink)
    number = 0
    while rank.publisher.counters.dropped_batches < 10:
        number += 1
        rank.step(rigs.stored(*range(10 * number, 10 * number + 9)), rigs.removed(10 * number - 9))
    await agree(rigs, subscriber, rank, sink)


# ---- lost batches


@pytest.mark.parametrize("replay", [True, False], ids=["replay", "no replay"])
async def test_a_gap_is_closed_by_replay_if_there_is_one_else_by_a_snapshot(
    lossy_rank: Any, follow: Any, rigs: Any, replay: bool
) -> None:
    rank, sink = lossy_rank(replay=replay), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await rank.hear(subscriber)
    before, snapshots = subscriber.status, rank.num_snapshots
    rank.step(rigs.stored(1, 2, 3), lost=True)
    rank.step(rigs.removed(2), lost=True)
    rank.step(rigs.stored(4))
    await agree(rigs, subscriber, rank, sink)
    assert sink.hashes == {1, 3, 4}
    assert subscriber.status.gaps == before.gaps + 1
    assert rank.num_snapshots == snapshots + (not replay)
    assert subscriber.status.resyncs == before.resyncs + (not replay)
    assert "missing" in subscriber.status.reason


async def test_a_gap_that_the_replay_no_longer_has_is_closed_by_a_snapshot(
    lossy_rank: Any, follow: Any, rigs: Any
) -> None:
    rank, sink = lossy_rank(replay=True, capacity=2), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await rank.hear(subscriber)
    snapshots = rank.num_snapshots
    for number in range(3):
        rank.step(rigs.stored(number), lost=True)
    rank.step(rigs.stored(9))
    await agree(rigs, subscriber, rank, sink)
    assert sink.hashes == {0, 1, 2, 9}
    assert rank.num_snapshots == snapshots + 1


async def test_a_replay_port_that_nobody_answers_at_is_no_dead_end(
    lossy_rank: Any, follow: Any, rigs: Any, free_ports: Any
) -> None:
    rank, sink = lossy_rank(), rigs.Blocks()
    subscriber = follow(rank.info(replay_port=free_ports(1)), rank, sink, replay_timeout_s=0.05)
    await rank.hear(subscriber)
    rank.step(rigs.stored(1), lost=True)
    rank.step(rigs.stored(2))
    await agree(rigs, subscriber, rank, sink)
    assert "replay: no reply within 0.05 s" in subscriber.status.reason


async def test_a_replay_that_never_ends_is_no_dead_end(lossy_rank: Any, follow: Any, rigs: Any) -> None:
    """The question for later batches is still being answered when the one for a missing batch comes up."""
    rank, sink, context = lossy_rank(), rigs.Blocks(), zmq.asyncio.Context()
    server = context.socket(zmq.ROUTER)
    server.setsockopt(zmq.LINGER, 0)
    asked = asyncio.Event()

    async def answer() -> None:
        peer = (await server.recv_multipart())[0]
        asked.set()
        while True:
            await server.send_multipart([peer, b"", b"", encode_seq(0), b"x"])
            await asyncio.sleep(0.01)

    port = server.bind_to_random_port("tcp://127.0.0.1")
    answering = asyncio.create_task(answer())
    subscriber = follow(rank.info(replay_port=port), rank, sink, replay_timeout_s=0.2)
    await asyncio.wait_for(asked.wait(), 10)
    await rank.hear(subscriber)
    rank.step(rigs.stored(1), lost=True)
    rank.step(rigs.stored(2))
    await agree(rigs, subscriber, rank, sink)
    assert sink.hashes == {1, 2}
    answering.cancel()
    await asyncio.wait([answering])
    server.close()
    context.term()


@pytest.mark.parametrize("replay", [True, False], ids=["replay", "no replay"])
async def test_a_lost_last_batch_is_noticed_from_what_the_rank_says_of_itself(
    lossy_rank: Any, follow: Any, rigs: Any, replay: bool
) -> None:
    rank, sink = lossy_rank(replay=replay), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink, **UNSEEN)
    await rank.hear(subscriber)
    rank.step(rigs.stored(1), lost=True)
    await agree(rigs, subscriber, rank, sink)
    assert sink.hashes == {1}


async def test_what_the_rank_says_early_of_a_batch_on_its_way_changes_nothing(
    lossy_rank: Any, follow: Any, rigs: Any
) -> None:
    rank, sink = lossy_rank(), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await rank.hear(subscriber)
    before = subscriber.status
    for number in range(20):
        subscriber.observe(rank.epoch, rank.seq + 1)
        rank.step(rigs.stored(number))
        await agree(rigs, subscriber, rank, sink)
        subscriber.observe(rank.epoch, rank.seq)
    assert (subscriber.status.gaps, subscriber.status.resyncs) == (before.gaps, before.resyncs)


# ---- restarts that no broken connection tells of


async def test_a_sequence_that_goes_back_drops_the_blocks_at_once(
    lossy_rank: Any, follow: Any, rigs: Any
) -> None:
    rank, sink = lossy_rank(replay=True), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink)
    rank.step(rigs.stored(1, 2, 3))
    await rank.hear(subscriber)
    rank.restart()
    rank.snapshot_error = RuntimeError("not yet")
    rank.step(AllBlocksCleared())
    rank.step(rigs.stored(7))
    assert await rigs.holds(lambda: subscriber.status.state == "stale")
    assert sink.hashes == set()
    assert "restarted" in subscriber.status.reason
    rank.snapshot_error = None
    await agree(rigs, subscriber, rank, sink)
    assert sink.hashes == {7}


async def test_a_restart_before_the_first_batch_after_the_snapshot_is_noticed(
    lossy_rank: Any, follow: Any, rigs: Any
) -> None:
    rank, sink = lossy_rank(), rigs.Blocks()
    for number in range(10):
        rank.step(rigs.stored(number))
    subscriber = follow(rank.info(), rank, sink)
    assert await rigs.holds(lambda: subscriber.status.state == "exact")
    rank.restart()
    while subscriber.status.resyncs == 0 and rank.seq < 8:
        rank.step(rigs.stored(100 + rank.seq))
        await rigs.holds(lambda: subscriber.status.resyncs > 0, timeout_s=0.1)
    assert "restarted" in subscriber.status.reason
    await agree(rigs, subscriber, rank, sink)
    assert sink.hashes == rank.truth.hashes


async def test_a_replay_by_another_publisher_is_not_applied(lossy_rank: Any, follow: Any, rigs: Any) -> None:
    """Its first batches are lost, and the first that comes has a number beyond the old one's last."""
    rank, sink = lossy_rank(replay=True), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink)
    rank.step(rigs.stored(1, 2, 3))
    await rank.hear(subscriber)
    last = rank.seq
    rank.restart()
    while rank.seq < last + 3:
        rank.step(rigs.stored(100 + rank.seq), lost=True)
    rank.step(rigs.stored(7))
    assert await rigs.holds(lambda: subscriber.status.resyncs > 0)
    assert "it has another batch" in subscriber.status.reason
    await agree(rigs, subscriber, rank, sink)
    assert 1 not in sink.hashes


async def test_a_new_epoch_is_believed_before_any_batch_of_it(
    lossy_rank: Any, follow: Any, rigs: Any
) -> None:
    rank, sink = lossy_rank(), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink)
    rank.step(rigs.stored(1))
    await rank.hear(subscriber)
    rank.restart()
    rank.step(rigs.stored(2), lost=True)
    subscriber.observe(rank.epoch, rank.seq)
    assert subscriber.status.state == "syncing"
    await agree(rigs, subscriber, rank, sink)
    assert sink.hashes == {2}


# ---- what goes wrong


async def test_a_failing_snapshot_makes_the_rank_stale_until_one_succeeds(
    lossy_rank: Any, follow: Any, rigs: Any
) -> None:
    rank, sink = lossy_rank(), rigs.Blocks()
    rank.step(rigs.stored(1))
    rank.snapshot_error = RuntimeError("rank is busy")
    subscriber = follow(rank.info(), rank, sink)
    assert await rigs.holds(lambda: rank.num_snapshots >= 3)
    assert subscriber.status.state == "stale"
    assert "rank is busy" in subscriber.status.reason
    assert sink.hashes == set()
    rank.snapshot_error = None
    await agree(rigs, subscriber, rank, sink)
    assert subscriber.status.resyncs == 0


async def test_a_snapshot_that_never_comes_makes_the_rank_stale(
    lossy_rank: Any, follow: Any, rigs: Any
) -> None:
    async def never() -> CacheSnapshot:
        await asyncio.Event().wait()
        raise AssertionError

    rank = lossy_rank()
    subscriber = follow(rank.info(), rank, rigs.Blocks(), fetch_snapshot=never, snapshot_timeout_s=0.05)
    assert await rigs.holds(lambda: subscriber.status.state == "stale")
    assert "TimeoutError" in subscriber.status.reason


async def test_a_publisher_that_cant_be_reached_makes_the_rank_stale(
    lossy_rank: Any, follow: Any, rigs: Any, free_ports: Any
) -> None:
    rank, port = lossy_rank(), free_ports(1)
    subscriber = follow(rank.info(event_port=port), rank, rigs.Blocks(), connect_timeout_s=0.05)
    assert await rigs.holds(lambda: subscriber.status.state == "stale")
    assert f"no publisher at tcp://127.0.0.1:{port}" in subscriber.status.reason
    assert rank.num_snapshots == 0


@pytest.mark.parametrize("replay", [True, False], ids=["replay", "no replay"])
async def test_an_unreadable_batch_is_counted_and_made_up_for(
    lossy_rank: Any, follow: Any, rigs: Any, replay: bool
) -> None:
    rank, sink = lossy_rank(replay=replay), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await rank.hear(subscriber)
    rank.step(rigs.stored(1), lost=True)
    rank.send([b"", encode_seq(rank.seq), b"\xc1 no msgpack"])
    rank.step(rigs.stored(2))
    await agree(rigs, subscriber, rank, sink)
    assert sink.hashes == {1, 2}
    assert subscriber.status.bad_messages == 1


@pytest.mark.parametrize(
    "frames",
    [[b""], [b"", b"", b"", b""], [b"", b"short", b""], [b"topic", encode_seq(0), b""]],
    ids=["one frame", "four frames", "short seq", "other topic"],
)
async def test_a_message_of_another_shape_is_counted_and_loses_nothing(
    lossy_rank: Any, follow: Any, rigs: Any, frames: list[bytes]
) -> None:
    rank, sink = lossy_rank(), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await rank.hear(subscriber)
    before = subscriber.status
    rank.send(frames)
    rank.step(rigs.stored(1))
    await agree(rigs, subscriber, rank, sink)
    after = subscriber.status
    assert (after.bad_messages, after.gaps, after.resyncs) == (1, before.gaps, before.resyncs)


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
    lossy_rank: Any, follow: Any, rigs: Any, stored: Any, removed: Any, left: set[int]
) -> None:
    rank, sink = lossy_rank(), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await rank.hear(subscriber)
    for event in (stored, removed):
        rank.seq += 1
        rank.send([b"", encode_seq(rank.seq), msgspec.msgpack.encode([time.time(), [event], 0])])
    assert await rigs.holds(lambda: subscriber.status.applied_seq == rank.seq), subscriber.status
    assert sink.hashes == left
    assert subscriber.status.bad_messages == 0


async def test_batches_of_another_rank_are_never_applied(lossy_rank: Any, follow: Any, rigs: Any) -> None:
    rank, sink = lossy_rank(), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await rank.hear(subscriber)
    rank.step(rigs.stored(1), dp_rank=5)
    rank.truth = rigs.Blocks()
    await agree(rigs, subscriber, rank, sink)
    assert sink.hashes == set()
    assert subscriber.status.bad_messages == 1


async def test_a_sink_that_fails_costs_a_snapshot(lossy_rank: Any, follow: Any, rigs: Any) -> None:
    class Fragile(rigs.Blocks):  # type: ignore[misc]
        fails = False

        def apply(self, events: Sequence[CacheEvent]) -> None:
            if self.fails:
                self.fails = False
                raise RuntimeError("sink broke")
            super().apply(events)

    rank, sink = lossy_rank(), Fragile()
    subscriber = follow(rank.info(), rank, sink)
    await rank.hear(subscriber)
    sink.fails = True
    rank.step(rigs.stored(1, 2))
    await agree(rigs, subscriber, rank, sink)
    assert "sink broke" in subscriber.status.reason


async def test_a_burst_leaves_the_event_loop_to_others(lossy_rank: Any, follow: Any, rigs: Any) -> None:
    rank, sink = lossy_rank(), rigs.Blocks()
    subscriber = follow(rank.info(), rank, sink, **UNSEEN)
    await rank.hear(subscriber)
    for number in range(5000):
        rank.step(rigs.stored(number))
    applied_at_turns: list[int] = []
    last_seq = rank.seq
    while subscriber.status.applied_seq < last_seq:
        subscriber.observe(rank.epoch, rank.seq)
        applied_at_turns.append(subscriber.status.applied_seq)
        await asyncio.sleep(0)
    await agree(rigs, subscriber, rank, sink)
    assert max(after - before for before, after in itertools.pairwise(applied_at_turns)) <= 256


async def test_a_burst_of_big_batches_leaves_the_event_loop_to_others(
    lossy_rank: Any, follow: Any, rigs: Any
) -> None:
    class Slow(rigs.Blocks):  # type: ignore[misc, name-defined]
        def apply(self, events: Sequence[CacheEvent]) -> None:
            super().apply(events)
            until = time.monotonic() + 0.004
            while time.monotonic() < until:
                pass

    rank, sink = lossy_rank(), Slow()
    subscriber = follow(rank.info(), rank, sink)
    await rank.hear(subscriber)
    for number in range(100):
        rank.step(rigs.stored(number))
    applied_at_turns: list[int] = []
    while subscriber.status.applied_seq < rank.seq:
        applied_at_turns.append(subscriber.status.applied_seq)
        await asyncio.sleep(0)
    assert max(after - before for before, after in itertools.pairwise(applied_at_turns)) <= 4


async def test_closing_ends_the_tasks_and_can_be_repeated(make_rank: Any, follow: Any, rigs: Any) -> None:
    rank, sink = make_rank(), rigs.Blocks()
    subscriber = follow(rank.publisher.info(""), rank, sink)
    rank.step(rigs.stored(1))
    await agree(rigs, subscriber, rank, sink)
    await subscriber.close()
    await subscriber.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_while_waiting_for_the_snapshot(lossy_rank: Any, follow: Any, rigs: Any) -> None:
    asked = asyncio.Event()

    async def never() -> CacheSnapshot:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    rank = lossy_rank()
    subscriber = follow(rank.info(), rank, rigs.Blocks(), fetch_snapshot=never)
    await asked.wait()
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
    rigs: Any, steps: list[tuple[str, int, bool]], replay: bool, capacity: int
) -> None:
    async def run() -> None:
        rank, sink = rigs.LossyRank(replay=replay, capacity=capacity), rigs.Blocks()
        subscriber = rigs.RankSubscriber(
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
                    rank.step(rigs.stored(block_hash, block_hash + 8), lost=lost)
                case "remove":
                    rank.step(rigs.removed(block_hash), lost=lost)
                case "clear":
                    rank.step(AllBlocksCleared(), lost=lost)
                case "restart":
                    rank.restart()
                    subscriber.observe(rank.epoch, rank.seq)
            await asyncio.sleep(0)
        await agree(rigs, subscriber, rank, sink)
        await subscriber.close()
        rank.close()

    asyncio.run(run())
