"""Batches that were published but not received: how they are noticed, and what makes up for them."""

from __future__ import annotations

import asyncio

import pytest
import zmq.asyncio

from app.events.schema import encode_seq
from tests.support.deadlines import comes_true
from tests.support.events.blocks import Blocks, removed, stored
from tests.support.events.ranks import MakeLossyRank, MakeRank
from tests.support.events.waiting import Follow, agree, until_live
from tests.support.free_ports import find_free_ports

FAST_LOSS = {"delivery_timeout_s": 0.05}
"""So that a lost batch is noticed soon."""


async def test_a_gap_left_by_a_full_queue_is_closed(make_rank: MakeRank, follow: Follow) -> None:
    rank = make_rank(max_queue_size=1)
    sink = Blocks()
    subscriber = follow(rank.info, rank, sink, **FAST_LOSS)
    await agree(subscriber, rank, sink)
    number = 0
    while rank.publisher.counters.dropped_batches < 10:
        number += 1
        rank.step(stored(*range(10 * number, 10 * number + 9)), removed(10 * number - 9))
    await agree(subscriber, rank, sink)


@pytest.mark.parametrize("replay", [True, False], ids=["replay", "no replay"])
async def test_a_gap_is_closed_by_replay_if_there_is_one_else_by_a_snapshot(
    lossy_rank: MakeLossyRank, follow: Follow, replay: bool
) -> None:
    rank, sink = lossy_rank(replay=replay), Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await until_live(rank, subscriber)
    before, snapshots = subscriber.status, rank.num_snapshots
    rank.step(stored(1, 2, 3), lost=True)
    rank.step(removed(2), lost=True)
    rank.step(stored(4))
    await agree(subscriber, rank, sink)
    assert sink.hashes == {1, 3, 4}
    assert subscriber.status.gaps == before.gaps + 1
    assert rank.num_snapshots == snapshots + (not replay)
    assert subscriber.status.resyncs == before.resyncs + (not replay)
    assert "missing" in subscriber.status.reason


async def test_a_gap_that_the_replay_no_longer_has_is_closed_by_a_snapshot(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    rank, sink = lossy_rank(replay=True, capacity=2), Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await until_live(rank, subscriber)
    snapshots = rank.num_snapshots
    for number in range(3):
        rank.step(stored(number), lost=True)
    rank.step(stored(9))
    await agree(subscriber, rank, sink)
    assert sink.hashes == {0, 1, 2, 9}
    assert rank.num_snapshots == snapshots + 1


async def test_a_replay_port_that_does_not_answer_is_no_dead_end(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    rank, sink = lossy_rank(), Blocks()
    subscriber = follow(rank.info(replay_port=find_free_ports(1)), rank, sink, replay_timeout_s=0.05)
    await until_live(rank, subscriber)
    rank.step(stored(1), lost=True)
    rank.step(stored(2))
    await agree(subscriber, rank, sink)
    assert "replay: no reply within 0.05 s" in subscriber.status.reason


async def test_a_replay_that_never_ends_is_no_dead_end(lossy_rank: MakeLossyRank, follow: Follow) -> None:
    """The question for later batches is still being answered when the one for a missing batch comes up."""
    rank, sink = lossy_rank(), Blocks()
    asked = asyncio.Event()

    async def answer(server: zmq.asyncio.Socket) -> None:
        peer = (await server.recv_multipart())[0]
        asked.set()
        while True:
            await server.send_multipart([peer, b"", b"", encode_seq(0), b"x"])
            await asyncio.sleep(0.01)

    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as server:
        server.setsockopt(zmq.LINGER, 0)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        answering = asyncio.create_task(answer(server))
        subscriber = follow(rank.info(replay_port=port), rank, sink, replay_timeout_s=0.2)
        await asyncio.wait_for(asked.wait(), 10)
        await until_live(rank, subscriber)
        rank.step(stored(1), lost=True)
        rank.step(stored(2))
        await agree(subscriber, rank, sink)
        assert sink.hashes == {1, 2}
        answering.cancel()
        await asyncio.wait([answering])


async def test_a_replay_by_another_publisher_is_not_applied(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    """Its first batches are lost, and the first that comes has a number beyond the old one's last."""
    rank, sink = lossy_rank(replay=True), Blocks()
    subscriber = follow(rank.info(), rank, sink)
    rank.step(stored(1, 2, 3))
    await until_live(rank, subscriber)
    last = rank.seq
    rank.restart()
    while rank.seq < last + 3:
        rank.step(stored(100 + rank.seq), lost=True)
    rank.step(stored(7))
    assert await comes_true(lambda: subscriber.status.resyncs > 0)
    assert "it has another batch" in subscriber.status.reason
    await agree(subscriber, rank, sink)
    assert 1 not in sink.hashes


@pytest.mark.parametrize("replay", [True, False], ids=["replay", "no replay"])
async def test_a_lost_last_batch_is_noticed_from_what_the_rank_reports(
    lossy_rank: MakeLossyRank, follow: Follow, replay: bool
) -> None:
    rank, sink = lossy_rank(replay=replay), Blocks()
    subscriber = follow(rank.info(), rank, sink, **FAST_LOSS)
    await until_live(rank, subscriber)
    rank.step(stored(1), lost=True)
    await agree(subscriber, rank, sink)
    assert sink.hashes == {1}


async def test_a_batch_that_the_rank_reports_before_it_arrives_changes_nothing(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    rank, sink = lossy_rank(), Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await until_live(rank, subscriber)
    before = subscriber.status
    for number in range(20):
        subscriber.observe(rank.epoch, rank.seq + 1)
        rank.step(stored(number))
        await agree(subscriber, rank, sink)
        subscriber.observe(rank.epoch, rank.seq)
    assert (subscriber.status.gaps, subscriber.status.resyncs) == (before.gaps, before.resyncs)


@pytest.mark.parametrize("replay", [True, False], ids=["replay", "no replay"])
async def test_an_unreadable_batch_is_counted_and_made_up_for(
    lossy_rank: MakeLossyRank, follow: Follow, replay: bool
) -> None:
    rank, sink = lossy_rank(replay=replay), Blocks()
    subscriber = follow(rank.info(), rank, sink)
    await until_live(rank, subscriber)
    rank.step(stored(1), lost=True)
    rank.send([b"", encode_seq(rank.seq), b"\xc1 no msgpack"])
    rank.step(stored(2))
    await agree(subscriber, rank, sink)
    assert sink.hashes == {1, 2}
    assert subscriber.status.bad_messages == 1
