"""Whatever the network and the publisher do, the subscriber's view ends equal to the publisher's cache.

Real sockets; how long each took is printed at the end of the run.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq.asyncio

from app.events.following.recovery_client import RecoveryClient
from app.events.following.subscriber import RankSubscriber
from app.events.schema import CacheEvent
from tests.support.deadlines import comes_true, until, wait_until
from tests.support.events.blocks import Blocks, removed, stored
from tests.support.events.faulty_link import (
    Fault,
    FaultyLink,
    Message,
    chaos,
    drop_every,
    send_twice,
    swap_neighbours,
)
from tests.support.events.ranks import MakeRank, Rank, publisher_info, with_address
from tests.support.events.waiting import Follow
from tests.support.free_ports import find_free_ports
from tests.support.snapshots import parents_in

MakeLink = Callable[[int, Fault], FaultyLink]
Ask = Callable[[int], RecoveryClient]
"""The client of a recovery socket, by port."""
POLL_INTERVAL_S = 0.5
"""As often as a router polls the ranks by default."""


@pytest.fixture
def link() -> Iterator[MakeLink]:
    links: list[FaultyLink] = []

    def make(publisher_port: int, fault: Fault) -> FaultyLink:
        links.append(FaultyLink(publisher_port, fault))
        return links[-1]

    yield make
    for each in links:
        each.close()


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    context = zmq.asyncio.Context()
    clients: list[RecoveryClient] = []

    def make(port: int) -> RecoveryClient:
        clients.append(RecoveryClient(context, f"tcp://127.0.0.1:{port}"))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    context.term()


class Followed:
    """A real publisher, what its cache holds, and a subscriber behind a link."""

    def __init__(self, rank: Rank, subscriber: RankSubscriber, sink: Blocks) -> None:
        self.rank = rank
        self.subscriber = subscriber
        self.sink = sink
        self._rng = random.Random(1)

    def change(self, num_steps: int) -> None:
        """Steps that store chains and remove some of what is held."""
        for _ in range(num_steps):
            events: list[CacheEvent] = [stored(*(self._rng.getrandbits(62) for _ in range(4)))]
            if len(self.rank.truth.hashes) > 200:
                events.append(removed(*self._rng.sample(sorted(self.rank.truth.hashes), 5)))
            self.rank.step(*events)

    async def until_live(self) -> None:
        """Batches arrive: the subscription has taken effect."""

        def arrived() -> bool:
            self.change(1)
            return self.subscriber.status.state == "exact" and self.subscriber.status.applied_seq > 3

        assert await comes_true(arrived), self.subscriber.status

    def is_equal(self) -> bool:
        status = self.subscriber.status
        return status.state == "exact" and status.applied_seq == self.rank.seq

    def is_drained(self) -> bool:
        """Whether the publisher has sent or dropped every batch that it was given."""
        counters = self.rank.publisher.counters
        return counters.published_batches + counters.dropped_batches == self.rank.seq + 1

    async def seconds_to_agree(self, *, polls: bool) -> float:
        """How long it takes until the view is exact at the last batch; equal to the cache then.

        With `polls` the rank describes itself, as routers have it; without, the subscriber is on its own.
        """
        started, last_poll = time.monotonic(), 0.0
        while not self.is_equal():
            now = time.monotonic()
            assert now - started < 20, self.subscriber.status
            if polls and now - last_poll >= POLL_INTERVAL_S:
                last_poll = now
                self.subscriber.observe(self.rank.epoch, self.rank.seq)
            await asyncio.sleep(0.002)
        assert self.sink.hashes == self.rank.truth.hashes
        return time.monotonic() - started


StartFollowed = Callable[..., Followed]


@pytest.fixture
def followed(make_rank: MakeRank, follow: Follow, link: MakeLink, ask: Ask) -> StartFollowed:
    """Starts a rank, and a subscriber of it behind a link with this fault, if any."""

    def start(fault: Fault | None, *, replay: bool, **keys: Any) -> Followed:
        if replay:
            keys["replay_endpoint"] = f"tcp://127.0.0.1:{find_free_ports(1)}"
        rank = make_rank(**keys)
        address, sink = rank.address, Blocks()
        event_port = link(address.event_port, fault).port if fault else address.event_port
        snapshot = rank.snapshot
        if address.replay_port is not None:
            snapshot = ask(address.replay_port).snapshot
        info = with_address(rank.info, event_port=event_port)
        subscriber = follow(info, rank, sink, fetch_snapshot=snapshot)
        return Followed(rank, subscriber, sink)

    return start


WAYS = pytest.mark.parametrize("replay", [True, False], ids=["replay", "snapshots only"])


@WAYS
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda: drop_every(2), id="every 2nd message lost"),
        pytest.param(lambda: drop_every(10), id="every 10th message lost"),
        pytest.param(swap_neighbours, id="neighbours swapped"),
        pytest.param(lambda: send_twice, id="every message twice"),
        pytest.param(lambda: chaos(1), id="lost, twice and late at random"),
    ],
)
async def test_a_link_that_loses_repeats_or_reorders(
    followed: StartFollowed, report_seconds: Callable[..., None], fault: Callable[[], Fault], replay: bool
) -> None:
    view = followed(fault(), replay=replay)
    await view.until_live()
    for _ in range(100):
        view.change(4)
        await asyncio.sleep(0.001)
    seconds = await view.seconds_to_agree(polls=not replay)
    status = view.subscriber.status
    report_seconds(seconds, f"{status.gaps} gaps, {status.resyncs} snapshots")
    assert status.bad_messages == 0


@WAYS
async def test_a_lost_last_message_is_noticed_within_two_seconds(
    followed: StartFollowed, report_seconds: Callable[..., None], replay: bool
) -> None:
    """With a replay, by a subscriber on its own; without one, by what a router sees of the rank."""
    loses = False
    view = followed(lambda message: [] if loses else [message], replay=replay)
    await view.until_live()
    await view.seconds_to_agree(polls=not replay)
    loses = True
    view.change(1)
    seconds = await view.seconds_to_agree(polls=not replay)
    report_seconds(seconds)
    assert view.subscriber.status.gaps > 0
    assert seconds < 2


@WAYS
async def test_a_subscriber_that_stalls_beyond_the_high_water_mark_costs_the_engine_nothing(
    followed: StartFollowed, report_seconds: Callable[..., None], replay: bool
) -> None:
    view = followed(None, replay=replay, hwm=100)
    await view.until_live()
    rank, before = view.rank, view.subscriber.status
    # The subscriber lives in this thread's event loop, so it reads nothing while this goes on.
    num_blocks = 2_000
    rng, slowest = random.Random(2), 0.0
    # ZMQ may find a queue full that has place a moment later, and then nothing is lost. Many more can't fit.
    found_full_at: int | None = None
    while found_full_at is None or rank.seq < found_full_at + 500:
        if found_full_at is None and rank.publisher.counters.overflows > 0:
            found_full_at = rank.seq
        if len(rank.truth.hashes) > 20 * num_blocks:
            rank.step(removed(*rank.truth.hashes))
        step = stored(*(rng.getrandbits(62) for _ in range(num_blocks)))
        started = time.perf_counter()
        rank.step(step)
        slowest = max(slowest, time.perf_counter() - started)
        wait_until(view.is_drained, "the batch is with ZMQ", interval_s=0)
        assert rank.seq < 50_000, "no queue is ever full"
    assert rank.publisher.counters.dropped_batches == 0
    seconds = await view.seconds_to_agree(polls=not replay)
    report_seconds(seconds, f"{rank.seq} batches, slowest publish {slowest * 1e3:.2f} ms")
    after = view.subscriber.status
    # On a busy machine ZMQ may give the connection up meanwhile; then that is how the loss is noticed.
    assert (after.gaps, after.resyncs) > (before.gaps, before.resyncs)


@WAYS
async def test_a_flood_from_another_thread(
    followed: StartFollowed, report_seconds: Callable[..., None], replay: bool
) -> None:
    view = followed(None, replay=replay, hwm=1_000, max_queue_size=20)
    await view.until_live()
    counters = view.rank.publisher.counters

    def change_until_some_are_dropped() -> None:
        view.change(5_000)
        while counters.dropped_batches == 0 and view.rank.seq < 100_000:
            view.change(500)

    flood = threading.Thread(target=change_until_some_are_dropped)
    started = time.monotonic()
    flood.start()
    while flood.is_alive():
        await asyncio.sleep(0.01)
    flood_s = time.monotonic() - started
    assert counters.dropped_batches > 0, "the publisher keeps up with any flood"
    if replay:
        # No replay shows what the publisher itself has dropped: a later batch does, or the rank's own report.
        await until(view.is_drained, "the publisher has sent what it has")
        view.change(1)
    report_seconds(
        await view.seconds_to_agree(polls=not replay),
        f"after {flood_s:.1f} s of flood, {counters.dropped_batches} batches dropped, "
        f"{view.subscriber.status.gaps} gaps",
    )


class Process:
    """A publisher in a process of its own."""

    def __init__(self, port: int, replay_port: int, seed: int) -> None:
        script = Path(__file__).parents[1] / "support/events/publisher_process.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(port), str(replay_port), str(seed)],
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_started(self) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline() == "started\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def settle(self) -> int:
        """Stop changing the cache; the last sequence number."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@pytest.fixture
def start_process() -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(*arguments: int) -> Process:
        processes.append(Process(*arguments))
        processes[-1].wait_started()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.mark.parametrize("hides", [False, True], ids=["direct", "behind a link that hides it"])
async def test_a_publisher_killed_and_started_again(
    start_process: Callable[..., Process],
    follow: Follow,
    ask: Ask,
    link: MakeLink,
    report_seconds: Callable[..., None],
    hides: bool,
) -> None:
    port, replay_port = find_free_ports(3), find_free_ports(1)
    first = start_process(port, replay_port, 1)
    client, sink = ask(replay_port), Blocks()
    info = publisher_info(
        event_port=link(port, lambda message: [message]).port if hides else port,
        replay_port=replay_port,
        epoch=(await client.snapshot()).epoch,
    )
    subscriber = follow(info, None, sink, fetch_snapshot=ask(replay_port).snapshot)

    def is_exact(num_resyncs: int) -> bool:
        status = subscriber.status
        return status.state == "exact" and status.applied_seq > 50 and status.resyncs >= num_resyncs

    assert await comes_true(lambda: is_exact(0)), subscriber.status
    first.kill()
    second = start_process(port, replay_port, 2)
    started = time.monotonic()
    assert await comes_true(lambda: is_exact(1)), subscriber.status
    report_seconds(time.monotonic() - started, subscriber.status.reason)
    last_seq = second.settle()
    assert await comes_true(lambda: subscriber.status.applied_seq == last_seq), subscriber.status
    snapshot = await client.snapshot()
    assert snapshot.seq == last_seq
    assert sink.hashes == set(parents_in(snapshot))


async def test_a_link_that_stays_silent_at_first_is_a_slow_joiner(
    followed: StartFollowed, report_seconds: Callable[..., None]
) -> None:
    """What is published before the subscription has taken effect is lost, and nothing comes after it."""
    passed: list[Message] = []
    is_open = False

    def fault(message: Message) -> list[Message]:
        if is_open:
            passed.append(message)
            return [message]
        return []

    view = followed(fault, replay=True)
    assert await comes_true(lambda: view.subscriber.status.state == "exact")
    view.change(3)
    report_seconds(await view.seconds_to_agree(polls=False))
    assert not passed
