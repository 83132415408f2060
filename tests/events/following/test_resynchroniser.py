"""Getting a rank's cache again: after restarts of its publisher, and while attempts fail."""

from __future__ import annotations

import asyncio

import pytest

from app.events.following.sync_status import Trust
from app.events.schema import AllBlocksCleared
from app.events.snapshot import CacheSnapshot
from tests.support.deadlines import comes_true
from tests.support.events.blocks import Blocks, stored
from tests.support.events.ranks import MakeLossyRank, MakeRank
from tests.support.events.waiting import Follow, agree, is_exact, until_live
from tests.support.free_ports import find_free_ports
from tests.support.tcp_server import tcp_server


async def test_a_publisher_restarted_on_the_same_port_is_followed_again(
    make_rank: MakeRank, follow: Follow
) -> None:
    keys = {
        "endpoint": f"tcp://127.0.0.1:{find_free_ports(6)}",
        "replay_endpoint": f"tcp://127.0.0.1:{find_free_ports(1)}",
    }
    old = make_rank(**keys)
    ranks = [old]
    old.step(stored(*range(100)))
    sink = Blocks()
    subscriber = follow(
        old.info, old, sink, fetch_snapshot=lambda: ranks[-1].snapshot(), connect_timeout_s=0.2
    )
    await agree(subscriber, old, sink)

    old.publisher.close()
    assert await comes_true(lambda: subscriber.status.state == "stale")
    assert sink.hashes == set()

    ranks.append(make_rank(**keys))
    # As many batches as before, so that the sequence numbers alone would show nothing.
    ranks[-1].step(stored(7))
    await agree(subscriber, ranks[-1], sink)
    assert sink.hashes == {7}


# ---- restarts that no broken connection shows


async def test_a_sequence_that_goes_back_drops_the_blocks_at_once(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    rank, sink = lossy_rank(replay=True), Blocks()
    subscriber = follow(rank.info(), rank, sink)
    rank.step(stored(1, 2, 3))
    await until_live(rank, subscriber)
    rank.restart()
    rank.snapshot_error = RuntimeError("not yet")
    rank.step(AllBlocksCleared())
    rank.step(stored(7))
    assert await comes_true(lambda: subscriber.status.state == "stale")
    assert sink.hashes == set()
    assert "restarted" in subscriber.status.reason
    rank.snapshot_error = None
    await agree(subscriber, rank, sink)
    assert sink.hashes == {7}


async def test_a_restart_before_the_first_batch_after_the_snapshot_is_noticed(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    rank, sink = lossy_rank(), Blocks()
    for number in range(10):
        rank.step(stored(number))
    subscriber = follow(rank.info(), rank, sink)
    assert await comes_true(lambda: is_exact(subscriber))
    rank.restart()
    while subscriber.status.resyncs == 0 and rank.seq < 8:
        rank.step(stored(100 + rank.seq))
        await comes_true(lambda: subscriber.status.resyncs > 0, timeout_s=0.1)
    assert "restarted" in subscriber.status.reason
    await agree(subscriber, rank, sink)
    assert sink.hashes == rank.truth.hashes


async def test_a_new_epoch_is_believed_before_any_batch_of_it(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    rank, sink = lossy_rank(), Blocks()
    subscriber = follow(rank.info(), rank, sink)
    rank.step(stored(1))
    await until_live(rank, subscriber)
    rank.restart()
    rank.step(stored(2), lost=True)
    subscriber.observe(rank.epoch, rank.seq)
    assert subscriber.status.state == "syncing"
    await agree(subscriber, rank, sink)
    assert sink.hashes == {2}


# ---- attempts that fail


async def test_a_failing_snapshot_makes_the_rank_stale_until_one_succeeds(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    rank, sink = lossy_rank(), Blocks()
    rank.step(stored(1))
    rank.snapshot_error = RuntimeError("rank is busy")
    subscriber = follow(rank.info(), rank, sink)
    assert await comes_true(lambda: rank.num_snapshots >= 3)
    assert subscriber.status.state == "stale"
    assert "rank is busy" in subscriber.status.reason
    assert sink.hashes == set()
    rank.snapshot_error = None
    await agree(subscriber, rank, sink)
    assert subscriber.status.resyncs == 0


async def test_a_snapshot_that_breaks_off_while_it_fills_the_cache_leaves_nothing_in_it(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    rank, sink = lossy_rank(), Blocks()
    rank.step(stored(1))
    held: list[tuple[Trust, set[int]]] = []

    async def cut_off() -> CacheSnapshot:
        snapshot = await rank.snapshot()
        return CacheSnapshot(snapshot.epoch, snapshot.seq, [*snapshot.payloads, b"cut off"])

    follow(
        rank.info(),
        rank,
        sink,
        fetch_snapshot=cut_off,
        on_state=lambda state: held.append((state, set(sink.hashes))),
    )
    assert await comes_true(lambda: held != [])
    assert held == [("stale", set())]


async def test_a_snapshot_that_never_comes_makes_the_rank_stale(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    async def never() -> CacheSnapshot:
        await asyncio.Event().wait()
        raise AssertionError

    rank = lossy_rank()
    subscriber = follow(rank.info(), rank, Blocks(), fetch_snapshot=never, snapshot_timeout_s=0.05)
    assert await comes_true(lambda: subscriber.status.state == "stale")
    assert "TimeoutError" in subscriber.status.reason


async def test_a_publisher_that_cant_be_reached_makes_the_rank_stale(
    lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    rank, port = lossy_rank(), find_free_ports(1)
    subscriber = follow(rank.info(event_port=port), rank, Blocks(), connect_timeout_s=0.05)
    assert await comes_true(lambda: subscriber.status.state == "stale")
    assert f"no publisher at tcp://127.0.0.1:{port}" in subscriber.status.reason
    assert rank.num_snapshots == 0


@pytest.mark.parametrize(
    ("closes", "reason"),
    [
        (True, "connection lost in the handshake: the publisher has died, or wants CURVE"),
        (False, "connected, but no handshake: it hangs, or is no publisher"),
    ],
)
async def test_says_what_a_process_that_dies_or_hangs_looks_like(
    closes: bool, reason: str, lossy_rank: MakeLossyRank, follow: Follow
) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not closes:
            await reader.read()

    async with tcp_server(accept) as port:
        rank = lossy_rank()
        subscriber = follow(rank.info(event_port=port), rank, Blocks(), connect_timeout_s=0.2)
        expected = f"tcp://127.0.0.1:{port}: {reason}"
        assert await comes_true(lambda: subscriber.status.reason.endswith(expected)), subscriber.status
        await subscriber.close()


async def test_closing_while_waiting_for_the_snapshot(lossy_rank: MakeLossyRank, follow: Follow) -> None:
    asked = asyncio.Event()

    async def never() -> CacheSnapshot:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    rank = lossy_rank()
    subscriber = follow(rank.info(), rank, Blocks(), fetch_snapshot=never)
    await asked.wait()
    await subscriber.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
