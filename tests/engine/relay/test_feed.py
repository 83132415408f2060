"""The feed with a publisher that speaks vLLM's and SGLang's wire, over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app import hashing
from app.engine.relay.feed import ForeignFeed
from app.engine.relay.feed_status import FeedState, ForeignPublisher
from app.engine.relay.relay import Relay
from app.events.schema import AllBlocksCleared, CacheEvent
from app.events.snapshot import CachedBlock
from app.routing.index.index_writer import IndexWriter
from app.routing.index.prefix_index import PrefixIndex
from tests.support.deadlines import until
from tests.support.events.foreign_publisher import WirePublisher

BLOCK = 4
CLEARED = {"type": "AllBlocksCleared"}
Publishers = Callable[..., WirePublisher]


def stored(number: int, *, medium: str = "GPU") -> dict[str, Any]:
    """One first block of its own tokens."""
    return {
        "type": "BlockStored",
        "block_hashes": [2**63 + number],
        "parent_block_hash": None,
        "token_ids": [number] * BLOCK,
        "block_size": BLOCK,
        "lora_id": None,
        "medium": medium,
        "lora_name": None,
    }


def removed(number: int) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": [2**63 + number], "medium": "GPU"}


def name(number: int) -> int:
    """Our name of the block of `stored(number)`."""
    return hashing.wire_hashes(hashing.chain([number] * BLOCK, BLOCK))[0]


class Follower:
    """A feed into a router's index."""

    def __init__(self, publisher: WirePublisher, **options: Any) -> None:
        self.index = PrefixIndex()
        self.events: list[CacheEvent] = []
        self.states: list[FeedState] = []
        self._writer = IndexWriter(self.index, 0)
        address = ForeignPublisher(publisher.events, publisher.replays, publisher.topic.decode())
        self.relay = Relay(BLOCK, hashes="opaque", source="a worker")
        self.feed = ForeignFeed(
            address, self.relay, self._publish, name="a worker", on_state=self.states.append, **options
        )

    def _publish(self, events: Sequence[CacheEvent]) -> None:
        self.events += events
        self._writer.apply(events)

    async def holds(self, *numbers: int, state: FeedState | None = None) -> None:
        """Wait until exactly these blocks are held, in the index and in the content, and that state."""
        expected = set(map(name, numbers))

        def has_come() -> bool:
            return self.index.blocks_of(0) == expected and state in (None, self.feed.status.state)

        await until(has_come, lambda: f"{expected} {state}: {self.index.blocks_of(0)} {self.feed.status}")
        content = self.feed.content(lambda blocks: {block.hash for block in blocks}).result(timeout=0)
        assert content == expected


@pytest.fixture
def publishers(tmp_path: Path) -> Iterator[Publishers]:
    """Starts publishers at an address of the test's own, one after the other."""
    started: list[WirePublisher] = []

    def start(**options: Any) -> WirePublisher:
        options = {"events": f"ipc://{tmp_path}/e", "replays": f"ipc://{tmp_path}/r", **options}
        publisher = WirePublisher(**options)
        publisher.start()
        started.append(publisher)
        return publisher

    yield start
    for publisher in started:
        if publisher.is_running:
            publisher.close()


@asynccontextmanager
async def following(publisher: WirePublisher, **options: Any) -> AsyncIterator[Follower]:
    follower = Follower(publisher, **options)
    follower.feed.start()
    try:
        yield follower
    finally:
        await follower.feed.close()


@pytest.mark.parametrize("with_topic", [True, False], ids=["vllm", "sglang 0.5.13"])
async def test_what_was_published_before_comes_from_the_replay(
    publishers: Publishers, with_topic: bool
) -> None:
    publisher = publishers(topic=b"kv", with_topic=with_topic)
    publisher.publish_events([stored(1), stored(2)])
    publisher.publish_events([removed(1)])
    async with following(publisher) as follower:
        await follower.holds(2, state="whole")
        publisher.publish_events([stored(3)])
        await follower.holds(2, 3, state="whole")
        status = follower.feed.status
        assert (status.applied_seq, status.gaps, status.adoptions, status.bad_messages) == (2, 0, 1, 0)
        assert status.idle_s is not None
        assert status.idle_s < 20


async def test_a_worker_that_starts_later_is_found(publishers: Publishers, tmp_path: Path) -> None:
    address = WirePublisher(f"ipc://{tmp_path}/e", f"ipc://{tmp_path}/r")
    async with following(address, connect_timeout_s=0.1) as follower:
        await until(lambda: follower.feed.status.state == "down", "down")
        assert f"ipc://{tmp_path}/e" in follower.feed.status.reason
        publisher = publishers()
        await until(lambda: follower.feed.status.state == "whole", lambda: follower.feed.status)
        publisher.publish_events([stored(1)])
        await follower.holds(1, state="whole")


async def test_a_lost_batch_is_replayed(publishers: Publishers) -> None:
    publisher = publishers()
    publisher.publish_events([stored(1)])
    async with following(publisher) as follower:
        await follower.holds(1)
        publisher.publish_events([removed(1), stored(2)], is_sent=False)
        publisher.publish_events([stored(3)])
        await follower.holds(2, 3, state="whole")
        assert follower.feed.status.gaps == 1
        assert follower.feed.status.adoptions == 1


async def test_a_lost_last_batch_is_found_by_a_probe(publishers: Publishers) -> None:
    publisher = publishers()
    async with following(publisher, probe_interval_s=0.2, delivery_timeout_s=0.1) as follower:
        publisher.publish_events([stored(1)])
        await follower.holds(1)
        publisher.publish_events([stored(2)], is_sent=False)
        await follower.holds(1, 2, state="whole")


async def test_a_gap_that_the_replay_has_no_more_starts_again(publishers: Publishers) -> None:
    publisher = publishers(buffer=2)
    publisher.publish_events([stored(1)])
    async with following(publisher) as follower:
        await follower.holds(1, state="whole")
        for number in range(2, 6):
            publisher.publish_events([stored(number)], is_sent=False)
        publisher.publish_events([stored(6)])
        await follower.holds(5, 6, state="partial")
        assert AllBlocksCleared() in follower.events
        assert "batches 1 to 4 missing" in follower.feed.status.reason
        publisher.publish_events([CLEARED, stored(7)])
        await follower.holds(7, state="whole")


async def test_an_end_of_the_replay_that_never_comes_is_not_waited_for(publishers: Publishers) -> None:
    publisher = publishers(with_end=False)
    publisher.publish_events([stored(1)])
    async with following(publisher, message_timeout_s=0.3) as follower:
        await follower.holds(1, state="whole")
        publisher.publish_events([stored(2)])
        await follower.holds(1, 2, state="whole")


async def test_without_a_replay_the_first_batch_must_be_number_0(publishers: Publishers) -> None:
    publisher = publishers(replays=None)
    async with following(publisher) as follower:
        await until(lambda: follower.feed.status.state == "partial", lambda: follower.feed.status)
        publisher.publish_events([stored(1)])
        await follower.holds(1, state="whole")
        publisher.publish_events([stored(2)], is_sent=False)
        publisher.publish_events([stored(3)])
        await until(lambda: follower.feed.status.adoptions == 2, lambda: follower.feed.status)
        publisher.publish_events([stored(4)])
        await follower.holds(4, state="partial")


async def test_late_adoption_is_partial_and_whole_after_a_flush(publishers: Publishers) -> None:
    publisher = publishers(buffer=1)
    publisher.publish_events([stored(1)])
    publisher.publish_events([stored(2)])
    publisher.wait_published()
    may_flush = asyncio.Event()

    async def flush() -> None:
        await may_flush.wait()
        publisher.publish_events([CLEARED])

    async with following(publisher, flush=flush) as follower:
        await follower.holds(2, state="partial")
        assert "doesn't reach back" in follower.feed.status.reason
        may_flush.set()
        await follower.holds(state="whole")
        publisher.publish_events([stored(3)])
        await follower.holds(3, state="whole")
        assert follower.states == ["partial", "whole"]


async def test_a_flush_that_fails_is_shown(publishers: Publishers) -> None:
    publisher = publishers(buffer=1)
    publisher.publish_events([stored(1)])
    publisher.publish_events([stored(2)])
    publisher.wait_published()

    async def flush() -> None:
        raise OSError("the worker is busy")

    async with following(publisher, flush=flush) as follower:
        await until(lambda: "the worker is busy" in follower.feed.status.reason, "shown")
        await follower.holds(2, state="partial")


async def test_a_restarted_worker_is_adopted_again(publishers: Publishers) -> None:
    publisher = publishers()
    publisher.publish_events([stored(1)])
    async with following(publisher) as follower:
        await follower.holds(1, state="whole")
        publisher.close()
        await follower.holds(state="down")
        publishers().publish_events([stored(2)])
        await follower.holds(2, state="whole")
        assert follower.feed.status.adoptions == 2


async def test_an_unreadable_batch_leaves_nothing_credited(publishers: Publishers) -> None:
    publisher = publishers()
    publisher.publish_events([stored(1)])
    async with following(publisher) as follower:
        await follower.holds(1, state="whole")
        publisher.publish(b"\xc1 no msgpack")
        await follower.holds(state="partial")
        publisher.publish_events([stored(2)])
        await follower.holds(2, state="partial")
        assert follower.feed.status.relay.faults == {"batch": 1}
        assert follower.feed.status.applied_seq == 2


async def test_a_probe_is_rare(publishers: Publishers) -> None:
    """Replays hold up the worker's publishing: one at adoption, one right after, then none for seconds."""
    publisher = publishers()
    async with following(publisher) as follower:
        publisher.publish_events([stored(1)])
        await follower.holds(1)
        for number in range(2, 12):
            publisher.publish_events([stored(number)])
            await follower.holds(*range(1, number + 1))
        assert publisher.num_requests <= 2


async def test_content_is_read_on_any_thread_and_agrees_with_the_events(publishers: Publishers) -> None:
    publisher = publishers()
    async with following(publisher) as follower:
        for number in range(300):
            publisher.publish_events([stored(number)])
        seen: list[tuple[int, int]] = []

        def read(blocks: Sequence[CachedBlock]) -> tuple[int, int]:
            return len(blocks), len(follower.events)

        def ask() -> None:
            while not seen or seen[-1][0] < 300:
                seen.append(follower.feed.content(read).result(timeout=0))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        await until(lambda: not thread.is_alive(), lambda: follower.feed.status)
        assert all(num_blocks == num_events for num_blocks, num_events in seen)


@pytest.mark.parametrize("endpoint", ["", "tcp://host:x"])
async def test_an_address_that_can_not_be_dialled_is_told(endpoint: str) -> None:
    address, relay = ForeignPublisher(endpoint, None, "kv"), Relay(BLOCK, hashes="opaque", source="w")
    feed = ForeignFeed(address, relay, lambda events: None, name="w")
    feed.start()
    await until(lambda: feed.status.state == "down", lambda: feed.status)
    assert feed.status.reason == f"first connection; {endpoint!r} can't be dialled: Invalid argument"
    await feed.close()
