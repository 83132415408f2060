"""A rank's snapshots are what its published events amount to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import zmq
import zmq.asyncio

from app import hashing
from app.events.batch_codec import decode_batch
from app.events.following.recovery_client import RecoveryClient
from app.events.replay import SnapshotRequest, parse_reply, request_frames
from app.events.schema import BlockRemoved, BlockStored, CacheEvent, EventBatch
from tests.support.deadlines import until
from tests.support.engine.live_rank import LiveRank, answer, new_publisher
from tests.support.engine.tiny_engine import BLOCK, tiny_engine
from tests.support.snapshots import parents_in


async def test_the_snapshot_is_what_the_replayed_events_amount_to(publishing_rank: LiveRank) -> None:
    """64 blocks of 4 tokens, and prompts of 40 blocks: everything is evicted, again and again."""
    rank = publishing_rank
    work = [asyncio.create_task(answer(rank.generate(range(n, n + 160)))) for n in (10, 60, 110)]
    during = [await rank.core.snapshot() for _ in range(20)]
    await asyncio.gather(*work)
    for n in (160, 210, 260):
        await answer(rank.generate(range(n, n + 160)))
    snapshots = [*during, await rank.core.snapshot()]
    batches = await replayed(rank, snapshots[-1].seq)
    states = states_after(batches)
    assert any(isinstance(event, BlockRemoved) for batch in batches for event in batch.events)
    assert len({snapshot.seq for snapshot in snapshots}) > 1
    for snapshot in snapshots:
        assert set(parents_in(snapshot)) == states[snapshot.seq]
        assert snapshot.epoch == rank.publisher.epoch
    assert len(parents_in(snapshots[-1])) == rank.thread.num_cached_blocks


async def test_events_name_the_prompts_blocks(publishing_rank: LiveRank) -> None:
    await answer(publishing_rank.generate([5, 6, 7, 8, 9], cache_salt="tenant"))
    snapshot = await publishing_rank.core.snapshot()
    (digest,) = hashing.chain([5, 6, 7, 8], 4, hashing.seed("tenant"))
    assert hashing.wire_hash(digest) in parents_in(snapshot)


async def test_a_reset_between_steps_is_published(publishing_rank: LiveRank) -> None:
    rank = publishing_rank
    await answer(rank.generate())
    before = await rank.core.snapshot()
    assert parents_in(before)
    await rank.call(lambda engine: engine.reset_cache())
    after = await rank.core.snapshot()
    assert after.seq == before.seq + 1
    assert parents_in(after) == {}
    *_, full, empty = states_after(await replayed(rank, after.seq))
    assert full == set(parents_in(before))
    assert empty == set()


async def test_a_busy_event_loop_does_not_delay_a_snapshot_over_the_recovery_socket(
    publishing_rank: LiveRank,
) -> None:
    await answer(publishing_rank.generate())
    expected = await publishing_rank.core.snapshot()
    # Reading blocks the event loop.
    assert events_in(read_snapshot(publishing_rank)) == events_in(expected.payloads)


def test_a_closed_event_loop_ends_no_snapshots_and_a_stopped_engine_only_these(tiny_llama_dir: Path) -> None:
    publisher = new_publisher(BLOCK)

    async def served() -> LiveRank:
        rank = LiveRank(tiny_engine(tiny_llama_dir), publisher)
        await answer(rank.generate())
        return rank

    rank = asyncio.run(served())
    assert [len(read_snapshot(rank)) for _ in range(2)] == [1, 1]
    rank.core.stop()
    assert [read_snapshot(rank) for _ in range(2)] == [[], []]
    rank.stop()


def read_snapshot(rank: LiveRank) -> list[bytes]:
    """The payloads of a snapshot over the recovery socket; none if there is no snapshot."""
    payloads: list[bytes] = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://127.0.0.1:{rank.port('replay_port')}")
        socket.send_multipart(request_frames(SnapshotRequest()))
        while True:
            assert socket.poll(10_000), "no answer"
            reply = parse_reply(socket.recv_multipart())
            if reply.seq is None:
                return payloads
            payloads.append(reply.payload)


def events_in(payloads: Sequence[bytes]) -> list[CacheEvent]:
    """All events, in order."""
    return [event for payload in payloads for event in decode_batch(payload).events]


async def replayed(rank: LiveRank, last: int) -> list[EventBatch]:
    """The batches up to `last`, once the publisher's own thread has put them into its buffer."""
    await until(lambda: rank.publisher.counters.published_batches > last, f"batch {last} is published", 10)
    batches: list[EventBatch] = []
    address = f"tcp://127.0.0.1:{rank.port('replay_port')}"
    with zmq.asyncio.Context() as context, closing(RecoveryClient(context, address)) as client:
        await client.replay(0, lambda seq, payload: batches.append(decode_batch(payload)))
    return batches[: last + 1]


def states_after(batches: Sequence[EventBatch]) -> list[set[int]]:
    """The block set after each batch."""
    states = []
    blocks: set[int] = set()
    for batch in batches:
        for event in batch.events:
            match event:
                case BlockStored():
                    blocks = blocks | set(event.block_hashes)
                case BlockRemoved():
                    assert set(event.block_hashes) <= blocks
                    blocks = blocks - set(event.block_hashes)
                case _:
                    blocks = set()
        states.append(blocks)
    return states
