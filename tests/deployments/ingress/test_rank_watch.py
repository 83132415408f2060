"""Which requests leave their replicas, by what routers and the replicas themselves say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from app.deployments.ingress.dispatch.attempt import Attempt, LostRankError
from app.deployments.ingress.dispatch.live_attempts import LiveAttempts
from app.deployments.ingress.rank_watch import RankWatch
from app.deployments.messages import Json, RankInfo, RankReplica
from app.errors import NoRouterError, RankCallError, RankGoneError
from app.generation import TokenChunk
from app.routing.tracking.standing import USABLE, Standing
from tests.support.deadlines import until
from tests.support.fake_deployments import FakeCall, Silence
from tests.support.rank_info import rank_info

MODEL = "smollm2-135m-instruct"
INTERVAL_S = 0.01
QUIET_S = 0.1
DRAIN_S = 0.5
GONE = Standing("gone", "the routers no longer follow it")
DOWN = Standing("unavailable", "the worker is down")
REPLICA = RankReplica(1, "replica-1")


class Routers:
    """Attributes: `standing`, of every replica; whether some rank is `usable`, its `model`; `num_asked`."""

    def __init__(self) -> None:
        self.standing: Standing | Exception = USABLE
        self.usable = True
        self.model = MODEL
        self.num_asked = 0

    async def standings(self, replicas: Sequence[RankReplica]) -> list[Standing]:
        self.num_asked += 1
        if isinstance(self.standing, Exception):
            raise self.standing
        return [self.standing for _ in replicas]

    async def view(self) -> Json:
        rank = {"rank": 0, "unavailable": None if self.usable else "down", "model": self.model}
        return {"router": "one", "ranks": [rank]}


class Ranks:
    """Attributes: `answer` of every rank to `describe`."""

    def __init__(self) -> None:
        self.answer: RankInfo | Exception = rank_info(1)

    async def describe(self, *, replica_id: str, timeout_s: float) -> RankInfo:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Tokens:
    """A call that sends a token every few milliseconds."""

    async def __anext__(self) -> TokenChunk:
        await asyncio.sleep(INTERVAL_S)
        return TokenChunk([1], 1, 0)

    def cancel(self) -> None:
        pass


class Watched:
    """A watch, what it hears, and attempts of which it is to decide."""

    def __init__(self) -> None:
        self.routers, self.ranks, self.live = Routers(), Ranks(), LiveAttempts()
        self.watch = RankWatch(
            self.live,
            self.routers,
            self.ranks,
            model=MODEL,
            drain_timeout_s=DRAIN_S,
            interval_s=INTERVAL_S,
            quiet_s=QUIET_S,
        )
        self.lost: list[LostRankError] = []
        self._tasks: list[asyncio.Task[None]] = []

    def waiting(self) -> asyncio.Task[None]:
        """An attempt that gets nothing; ends when it is moved."""
        return self._start(FakeCall([Silence()]))

    def streaming(self) -> asyncio.Task[None]:
        """An attempt that gets tokens; ends when it is moved."""
        return self._start(Tokens())

    async def looks(self) -> None:
        """Long enough for a request that waits to count as quiet, and for some looks after that."""
        await asyncio.sleep(QUIET_S)
        seen = self.routers.num_asked
        await until(lambda: self.routers.num_asked > seen + 3, "more looks")

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, call: FakeCall | Tokens) -> asyncio.Task[None]:
        attempt = Attempt(
            lambda outcome: None,
            "request",
            REPLICA,
            call,
            choice_seq=0,
            patience_s=60,
            on_end=self.live.remove,
        )
        self.live.add(attempt)
        task = asyncio.create_task(self._read(attempt))
        self._tasks.append(task)
        return task

    async def _read(self, attempt: Attempt) -> None:
        try:
            while True:
                await attempt.next_chunk()
        except LostRankError as lost:
            self.lost.append(lost)
        finally:
            attempt.close("aborted")


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    watched = Watched()
    yield watched
    await watched.end()


async def test_what_waits_at_a_replica_that_drains_leaves_at_once_and_streams_later(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    watched.routers.standing, watched.ranks.answer = GONE, RankGoneError("gone")
    began = asyncio.get_running_loop().time()
    waiting, streaming = watched.waiting(), watched.streaming()
    await asyncio.wait_for(waiting, 5)
    assert not streaming.done()
    await asyncio.wait_for(streaming, 5)
    assert asyncio.get_running_loop().time() - began >= DRAIN_S
    assert [str(lost) for lost in watched.lost] == ["rank 1 was left (its replica is being replaced)"] * 2
    line = "rank 1: 1 requests go elsewhere: its replica is being replaced (request)"
    assert caplog.messages == [line] * 2
    assert all(lost.is_planned for lost in watched.lost)


async def test_a_replica_that_serves_keeps_its_requests_whatever_a_router_says(watched: Watched) -> None:
    watched.routers.standing = GONE
    waiting = watched.waiting()
    await watched.looks()
    assert not waiting.done()


@pytest.mark.parametrize(
    ("standing", "answer"),
    [
        (GONE, TimeoutError()),
        (GONE, RankCallError("cut off")),
        (DOWN, replace(rank_info(1), unavailable="the worker is down")),
    ],
)
async def test_a_replica_that_is_silent_or_serves_nothing_loses_only_what_gets_nothing(
    watched: Watched, standing: Standing, answer: RankInfo | Exception
) -> None:
    watched.routers.standing, watched.ranks.answer = standing, answer
    waiting, streaming = watched.waiting(), watched.streaming()
    await asyncio.wait_for(waiting, 5)
    (lost,) = watched.lost
    assert str(lost) == f"rank 1 was left ({standing.reason})"
    assert not lost.is_planned
    await asyncio.sleep(DRAIN_S)
    await watched.looks()
    assert not streaming.done()


@pytest.mark.parametrize("hears", [USABLE, NoRouterError("no router answers"), KeyError("a bug")])
async def test_requests_stay_while_no_router_says_that_their_replica_is_gone(
    watched: Watched, hears: Standing | Exception
) -> None:
    watched.routers.standing, watched.ranks.answer = hears, RankGoneError("gone")
    waiting = watched.waiting()
    await watched.looks()
    assert not waiting.done()
    watched.routers.standing = GONE
    await asyncio.wait_for(waiting, 5)


@pytest.mark.parametrize(("usable", "model"), [(False, MODEL), (True, "another")])
async def test_requests_stay_where_they_are_while_no_rank_could_take_them(
    watched: Watched, usable: bool, model: str
) -> None:
    watched.routers.standing, watched.ranks.answer = GONE, RankGoneError("gone")
    watched.routers.usable, watched.routers.model = usable, model
    waiting, streaming = watched.waiting(), watched.streaming()
    await asyncio.sleep(DRAIN_S)
    await watched.looks()
    assert not waiting.done()
    assert not streaming.done()
    watched.routers.usable, watched.routers.model = True, MODEL
    await asyncio.wait_for(asyncio.gather(waiting, streaming), 5)


async def test_a_replica_that_is_back_starts_its_time_again(watched: Watched) -> None:
    watched.routers.standing, watched.ranks.answer = GONE, RankGoneError("gone")
    streaming = watched.streaming()
    await asyncio.sleep(0.7 * DRAIN_S)
    watched.routers.standing = USABLE
    await watched.looks()
    watched.routers.standing = GONE
    again_at = asyncio.get_running_loop().time()
    await asyncio.wait_for(streaming, 5)
    assert asyncio.get_running_loop().time() - again_at >= 0.9 * DRAIN_S


async def test_no_router_is_asked_while_there_are_no_requests(watched: Watched) -> None:
    watched.waiting()
    await watched.looks()
    await watched.end()
    await asyncio.sleep(2 * INTERVAL_S)
    asked = watched.routers.num_asked
    await asyncio.sleep(5 * INTERVAL_S)
    assert watched.routers.num_asked == asked
    watched.waiting()
    await watched.looks()
