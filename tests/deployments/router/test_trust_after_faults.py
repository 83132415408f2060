"""After a gap, a restart and a cache clear a router's index is the rank's cache again, as an audit says.

A real engine on its thread, a real publisher and subscriber, and a link between them that can lose messages.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from app import hashing
from app.deployments.rank.core import RankCore
from app.engine.torch.engine import Engine
from app.engine.torch.engine_thread import EngineThread
from app.events.config import KvEventsConfig
from app.events.following.sync_status import SyncStatus, Trust
from app.events.publisher_info import PublisherInfo
from app.events.publishing.publisher import EventPublisher
from app.events.snapshot import CacheSnapshot
from app.generation import GenerateRequest, SamplingParams, TokenChunk
from app.routing.core import RoutingCore
from app.routing.decisions.decision import Prompt
from app.routing.decisions.explanation import Json, explanation
from app.routing.tracking.audit import Auditor, RankAudit
from app.routing.tracking.description import RankDescription
from app.routing.tracking.tracker import Tracker
from app.settings.engine import EngineConfig
from app.settings.routing import RoutingConfig
from tests.support.deadlines import until
from tests.support.events.faulty_link import FaultyLink, Message
from tests.support.free_ports import find_free_ports

BLOCK_SIZE = 4
CONFIG = EngineConfig.model_validate(
    {
        "cache": {"block_size": BLOCK_SIZE, "num_blocks": 40},
        "scheduler": {"max_running_requests": 4, "max_batch_tokens": 64},
    }
)
PARAMS = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
DEADLINE_S = 10.0
_rng = random.Random(1)


def new_prompt(num_blocks: int = 6) -> list[int]:
    return _rng.choices(range(10, 500), k=num_blocks * BLOCK_SIZE)


class LiveRank:
    """Everything of a DP rank but Ray: engine, thread, publisher. Its cache holds 40 blocks."""

    def __init__(self, model_dir: Path, replica_id: str, port: int, *, replays: bool) -> None:
        self.replica_id = replica_id
        config = KvEventsConfig(
            endpoint=f"tcp://127.0.0.1:{port}",
            replay_endpoint=f"tcp://127.0.0.1:{port + 2}" if replays else None,
        )
        self.publisher = EventPublisher(config, dp_rank=0, dp_size=1, block_size=BLOCK_SIZE)
        self.publisher.start()
        engine = Engine.load(model_dir, CONFIG, device="cpu", dtype="float32")
        self._thread = EngineThread(engine, dp_rank=0)
        self.core = RankCore(self._thread, 0, self.publisher)
        self.core.start()
        self._num_requests = 0

    def stop(self) -> None:
        self.core.stop()
        self.publisher.close()

    async def serve(self, *prompts: list[int]) -> None:
        for prompt in prompts:
            self._num_requests += 1
            request = GenerateRequest(f"r{self._num_requests}", prompt, PARAMS)
            messages = [message async for message in self.core.generate(request)]
            assert all(isinstance(message, TokenChunk) for message in messages), messages

    async def clear_cache(self) -> None:
        await asyncio.wrap_future(self._thread.submit(lambda engine: engine.reset_cache()))

    def describe(self, event_port: int) -> RankDescription:
        info = self.publisher.info("127.0.0.1")
        publisher = PublisherInfo(msgspec.structs.replace(info.address, event_port=event_port), info.state)
        max_prompt_tokens = self._thread.description.max_prompt_tokens
        return RankDescription(0, self.replica_id, publisher, self._thread.load, max_prompt_tokens)


class World:
    """A router's half, which follows one rank through a link that can lose messages."""

    def __init__(self, start_rank: Callable[[str], LiveRank], event_port: int) -> None:
        self.loses = False
        self.link = FaultyLink(event_port, self._pass)
        self.core = RoutingCore(RoutingConfig(), dp_size=1)
        self.snapshots_come = asyncio.Event()
        self.snapshots_come.set()
        self.snapshots_fail = False
        self.tracker = Tracker(self.core, self._fetch_snapshot, stall_timeout_s=10.0)
        self.auditor = Auditor(self.tracker, self.core.index, self._fetch_snapshot, pause_s=0.05)
        self.start_rank = start_rank
        self.rank = start_rank("first")

    def _pass(self, message: Message) -> Iterable[Message]:
        return [] if self.loses else [message]

    async def _fetch_snapshot(self, replica_id: str) -> CacheSnapshot:
        await self.snapshots_come.wait()
        if self.snapshots_fail or replica_id != self.rank.replica_id:
            raise ConnectionError(f"{replica_id} has no snapshot to give")
        return await self.rank.core.snapshot()

    async def close(self) -> None:
        await self.tracker.close()
        self.rank.stop()
        self.link.close()

    @property
    def status(self) -> SyncStatus:
        """The rank's, as the router has it."""
        (member,) = self.tracker.members()
        return member.status

    async def poll(self) -> None:
        await self.tracker.update([self.rank.describe(self.link.port)])

    async def until(self, condition: Callable[[SyncStatus], bool]) -> SyncStatus:
        """Polls, as a router does, until the rank's status is like this."""

        async def polled() -> SyncStatus | None:
            await self.poll()
            return self.status if condition(self.status) else None

        return await until(polled, lambda: f"another status than {self.status}", DEADLINE_S)

    async def until_exact(self) -> SyncStatus:
        """The rank's status once everything that it has published is in the index."""

        def is_exact(status: SyncStatus) -> bool:
            return (status.state, status.applied_seq) == ("exact", self.rank.publisher.last_seq)

        return await self.until(is_exact)

    async def until_live(self) -> None:
        """Messages get through the link: what follows is in no snapshot."""
        await self.until_exact()
        before = self.link.num_received
        while self.link.num_received == before:
            await self.rank.serve(new_prompt())
            await self.until_exact()

    async def audit(self) -> RankAudit:
        """The audit of the rank, whose index is equal to its cache."""
        (audit,) = await self.auditor.audit([0])
        assert (audit.verdict, audit.num_missing, audit.num_extra) == ("equal", 0, 0), audit
        assert audit.trust == "exact"
        return audit

    def explain(self, prompt: list[int]) -> Json:
        """The rank's row in what a router would decide on `prompt` now; the rank is what it chooses."""
        hashes = hashing.wire_hashes(hashing.chain(prompt, BLOCK_SIZE))
        request = Prompt("dry run", hashes, len(prompt), BLOCK_SIZE)
        decision = self.core.consider(request, time.monotonic())
        assert decision.rank == 0
        row: Json = explanation(decision, dp_size=1)["ranks"][0]
        assert (row["eligible"], row["why_not"]) == (True, None)
        return row


@pytest.fixture(params=[True, False], ids=["replay", "no replay"])
def replays(request: pytest.FixtureRequest) -> bool:
    """Whether the rank has a replay, or snapshots alone to mend gaps with."""
    return bool(request.param)


@pytest.fixture
async def world(tiny_llama_dir: Path, replays: bool) -> AsyncIterator[World]:
    port = find_free_ports(6)
    world = World(lambda replica_id: LiveRank(tiny_llama_dir, replica_id, port, replays=replays), port)
    yield world
    await world.close()


async def test_after_a_gap_the_index_is_the_cache(world: World, replays: bool) -> None:
    await world.until_live()
    before = await world.until_exact()
    # More than the cache holds, so that what is lost are evictions too.
    world.loses = True
    await world.rank.serve(*(new_prompt() for _ in range(10)))
    world.loses = False
    await world.rank.serve(new_prompt())
    after = await world.until_exact()
    assert after.gaps > before.gaps
    assert (after.resyncs > before.resyncs) is not replays
    audit = await world.audit()
    assert audit.num_rank_blocks == audit.num_router_blocks
    assert (audit.num_rank_blocks or 0) > 20


async def test_after_a_restart_the_index_is_the_new_ranks_cache(world: World) -> None:
    await world.until_live()
    old_prompt, new = new_prompt(), [new_prompt() for _ in range(3)]
    await world.rank.serve(old_prompt)
    await world.until_exact()
    assert world.explain(old_prompt)["cached_tokens"] > 0
    world.snapshots_come.clear()
    world.rank.stop()
    world.rank = world.start_rank("second")
    await world.poll()
    assert world.explain(old_prompt)["cached_tokens"] == 0, "from the first poll on"
    await world.until(lambda status: status.state == "syncing")
    assert standing(world, old_prompt) == ("syncing", 0)
    world.snapshots_come.set()
    await world.rank.serve(*new)
    await world.until_exact()
    assert (await world.audit()).num_rank_blocks == 3 * 6
    assert world.explain(old_prompt)["cached_tokens"] == 0
    assert [world.explain(prompt)["cached_tokens"] for prompt in new] == [5 * BLOCK_SIZE] * 3


@pytest.mark.parametrize("loses", [False, True], ids=["received", "lost"])
async def test_after_a_cache_clear_the_index_is_the_cache(world: World, loses: bool) -> None:
    await world.until_live()
    old_prompt, prompt = new_prompt(), new_prompt()
    await world.rank.serve(old_prompt)
    await world.until_exact()
    world.loses = loses
    await world.rank.clear_cache()
    await world.rank.serve(prompt)
    world.loses = False
    await world.until_exact()
    assert (await world.audit()).num_rank_blocks == 6
    assert world.explain(old_prompt)["cached_tokens"] == 0
    assert world.explain(prompt)["cached_tokens"] == 5 * BLOCK_SIZE


async def test_a_cleared_cache_that_no_request_uses_is_empty_in_the_index_too(world: World) -> None:
    await world.until_live()
    await world.rank.clear_cache()
    await world.until(lambda _: world.core.index.num_blocks == 0)
    await world.until_exact()
    assert (await world.audit()).num_rank_blocks == 0


async def test_while_a_rank_is_not_exact_it_is_chosen_but_credited_nothing(world: World) -> None:
    await world.until_live()
    prompt = new_prompt()
    await world.rank.serve(prompt)
    await world.until_exact()
    assert standing(world, prompt) == ("exact", 5 * BLOCK_SIZE)
    # A restarted publisher, whose cache no router knows yet.
    world.snapshots_come.clear()
    world.rank.stop()
    world.rank = world.start_rank("second")
    await world.rank.serve(prompt)
    await world.until(lambda status: status.state == "syncing")
    assert standing(world, prompt) == ("syncing", 0)
    world.snapshots_fail = True
    world.snapshots_come.set()
    status = await world.until(lambda status: status.state == "stale")
    assert "second has no snapshot to give" in (status.reason or "")
    assert standing(world, prompt) == ("stale", 0)
    world.snapshots_fail = False
    await world.until_exact()
    assert standing(world, prompt) == ("exact", 5 * BLOCK_SIZE)
    await world.audit()


def standing(world: World, prompt: list[int]) -> tuple[Trust, int]:
    row = world.explain(prompt)
    return row["trust"], row["cached_tokens"]
