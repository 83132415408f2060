"""A rank that becomes another while it works: events, snapshots, load and requests go on there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest
import zmq.asyncio

from app.config import load_config
from app.deployments.rank.core import RankCore
from app.deployments.rank.place import RankPlace
from app.engine.torch.engine_thread import EngineThread
from app.errors import EndpointInUseError, KvbeaconError
from app.events.batch_codec import decode_batch
from app.events.endpoints import parse_kv_events
from app.events.following.recovery_client import RecoveryClient
from app.events.schema import BlockRemoved, BlockStored
from app.routing.tracking.description import RankDescription
from app.routing.tracking.tracker import Tracker
from tests.support.deadlines import until
from tests.support.engine.live_engine import LONG, LiveEngine, new_request, tokens
from tests.support.engine.live_rank import answer
from tests.support.engine.tiny_engine import BLOCK, tiny_engine
from tests.support.free_ports import find_free_ports
from tests.support.routing.cores import new_core, set_routable
from tests.support.snapshots import parents_in

DP_SIZE = 2
DISTANCE = 2 * DP_SIZE


@dataclass
class MovingRank(LiveEngine):
    """Everything of a rank but Ray, as `DPRank` puts it together, and a router's tracker that follows it."""

    base: int
    place: RankPlace
    core: RankCore
    tracker: Tracker
    thread: EngineThread
    _num_requests: int = 0

    def describe(self) -> RankDescription:
        publisher = self.core.publisher
        assert publisher is not None
        return RankDescription(self.core.rank, "replica", publisher.info("127.0.0.1"), self.core.load, 1000)

    async def until_followed(self) -> None:
        """The tracker polls, as a router does, until it knows every block of the rank."""

        async def is_followed() -> bool:
            await self.tracker.update([self.describe()])
            followed = self.tracker.followed(self.core.rank)
            if followed is None or followed.status.state != "exact":
                return False
            held = set(parents_in(await self.core.snapshot()))
            return self.tracker.members()[0].num_blocks == len(held) > 0

        await until(is_followed, "all blocks are known")


@pytest.fixture
async def rank(tiny_llama_dir: Path) -> AsyncIterator[MovingRank]:
    base = find_free_ports(3 * DISTANCE)
    config = load_config(
        {
            "dp_size": DP_SIZE,
            "engine": {"cache": {"block_size": BLOCK}},
            "kv_events_config": {
                "publisher": "zmq",
                "endpoint": f"tcp://127.0.0.1:{base}",
                "replay_endpoint": f"tcp://127.0.0.1:{base + DISTANCE}",
            },
        }
    )
    place = RankPlace(config, parse_kv_events(config))
    await place.open(0, at_once=False)
    thread = EngineThread(tiny_engine(tiny_llama_dir), dp_rank=0)
    core = RankCore(thread, 0, place.publisher)
    core.start()
    place.core = core
    routing = new_core(dp_size=DP_SIZE)
    set_routable(routing, {})
    tracker = Tracker(routing, lambda replica_id: core.snapshot(), stall_timeout_s=10.0)
    yield MovingRank(base, place, core, tracker, thread)
    await tracker.close()
    core.stop()
    place.close()


async def test_requests_events_and_load_go_on_under_the_new_number(rank: MovingRank) -> None:
    await answer(rank.core.generate(new_request("first", range(40))))
    await rank.until_followed()
    expected = tokens(await answer(rank.core.generate(new_request("alone", range(7), LONG))))
    running = asyncio.create_task(answer(rank.core.generate(new_request("running", range(7), LONG))))
    await rank.until_load(1, 0)
    epoch = rank.describe().publisher
    ports = await rank.place.open(1, at_once=True)
    assert ports == {rank.base + 1, rank.base + DISTANCE + 1, rank.base + 2 * DISTANCE + 1}
    await rank.tracker.update([rank.describe()])
    assert [member.rank for member in rank.tracker.members()] == [1], "in the same update"
    assert rank.tracker.counters.renumbered == 1
    assert rank.tracker.standing(0, "replica").state == "usable"
    assert not running.done()
    assert tokens(await running) == expected
    await rank.until_followed()
    now = rank.describe()
    assert now.load.dp_rank == now.rank == 1
    assert epoch is not None
    assert now.publisher is not None
    assert now.publisher.state.epoch != epoch.state.epoch
    followed = rank.tracker.followed(1)
    assert followed is not None
    assert followed.status.bad_messages == 0


async def test_who_reads_the_new_publishers_batches_from_0_knows_the_cache(rank: MovingRank) -> None:
    """64 blocks, and prompts of 40: everything is evicted again and again, also while the rank moves."""

    async def work() -> None:
        for n in range(0, 400, 50):
            await answer(rank.core.generate(new_request(f"r{n}", range(n, n + 160))))

    working = asyncio.create_task(work())
    for number in cycle((1, 2, 0)):
        await rank.place.open(number, at_once=True)
        if working.done():
            break
    await working
    snapshot = await rank.core.snapshot()
    assert rank.core.publisher is not None
    assert snapshot.epoch == rank.core.publisher.epoch
    assert await replayed(rank, snapshot.seq) == set(parents_in(snapshot)) != set()


async def replayed(rank: MovingRank, last: int) -> set[int]:
    """What the publisher's batches up to `last` make of an empty cache; none of them is missing."""
    publisher = rank.core.publisher
    assert publisher is not None
    await until(lambda: publisher.counters.published_batches > last, f"batch {last} is published")
    blocks: set[int] = set()
    seqs = []

    def apply(seq: int, payload: bytes) -> None:
        if seq > last:
            return
        batch = decode_batch(payload)
        assert batch.dp_rank == rank.core.rank
        seqs.append(seq)
        for event in batch.events:
            match event:
                case BlockStored():
                    assert event.parent_block_hash is None or event.parent_block_hash in blocks
                    blocks.update(event.block_hashes)
                case BlockRemoved():
                    assert set(event.block_hashes) <= blocks
                    blocks.difference_update(event.block_hashes)
                case _:
                    blocks.clear()

    address = publisher.info("127.0.0.1").address.replay_endpoint
    assert address is not None
    with zmq.asyncio.Context() as context, closing(RecoveryClient(context, address)) as client:
        await client.replay(0, apply)
    assert seqs == list(range(last + 1))
    return blocks


async def test_the_publisher_that_was_left_gives_no_snapshot(rank: MovingRank) -> None:
    last = rank.place.publisher
    assert last is not None
    await rank.place.open(1, at_once=True)
    assert not last.is_running
    first = await rank.core.snapshot()
    assert rank.core.publisher is not None
    assert first.epoch == rank.core.publisher.epoch != last.epoch


async def test_a_port_that_is_taken_leaves_everything_as_it_is(rank: MovingRank) -> None:
    await answer(rank.core.generate(new_request("first", range(40))))
    with socket.create_server(("127.0.0.1", rank.base + DISTANCE + 1)):
        with pytest.raises(EndpointInUseError, match=f"rank 1 can't bind .*{rank.base + DISTANCE + 1}"):
            await rank.place.open(1, at_once=True)
        assert rank.core.rank == 0
        await rank.until_followed()
        assert rank.place.ports_of(1) == {rank.base + n * DISTANCE + 1 for n in range(3)}


async def test_beyond_the_deployments_numbers_taken_ports_are_replaced(rank: MovingRank) -> None:
    await answer(rank.core.generate(new_request("first", range(40))))
    with socket.create_server(("127.0.0.1", rank.base + DP_SIZE)):
        ports = await rank.place.open(DP_SIZE, at_once=True)
    assert len(ports) == 3
    assert not ports & rank.place.ports_of(DP_SIZE)
    await rank.until_followed()


async def test_after_the_engines_end_nothing_moves(rank: MovingRank) -> None:
    rank.core.stop()
    with pytest.raises(KvbeaconError, match="stopped"):
        await rank.place.open(1, at_once=True)
    assert rank.core.rank == 0
