"""Ranks that Ray has and that don't answer: hung, stopped or cut off. When they are suspect, and return."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest

from app.routing.decisions.decision import Prompt
from app.routing.tracking.description import Absence
from app.routing.tracking.followed_rank import LOAD_LATE_S
from app.routing.tracking.standing import USABLE
from tests.support.deadlines import until
from tests.support.routing.cores import load_stat
from tests.support.routing.live_ranks import BLOCK_SIZE, DEADLINE_S, Follower, LiveRank, description, hashes

SILENT = Absence("silent")


@pytest.fixture
async def world() -> AsyncIterator[Follower]:
    world = Follower(stall_timeout_s=1.0)
    yield world
    await world.close()


async def start(world: Follower, rank: int) -> LiveRank:
    """A rank whose five blocks are known and whose load reports come by themselves."""
    live = world.start(rank)
    live.store(hashes(1000 * rank, 5))
    await world.poll(*world.polled, live)
    await world.until_known(live)

    def is_reporting() -> bool:
        live.publisher.publish_load(load_stat(waiting_tokens=3, rank=rank), [])
        return world.core.load.waiting_tokens(rank) == 3

    await until(is_reporting, "a load report", DEADLINE_S)
    return live


async def miss(world: Follower, silent: LiveRank, *answering: LiveRank) -> str | None:
    """Why `silent` gets no requests after a poll that it missed."""
    await world.tracker.update([each.describe() for each in answering], {silent.replica_id: SILENT})
    return world.tracker.standing(silent.rank, silent.replica_id).reason or None


async def test_a_rank_whose_load_reports_stay_out_too_is_suspect_long_before_the_timeout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    world = Follower(stall_timeout_s=1000.0)
    silent, other = await start(world, 0), await start(world, 1)
    assert await miss(world, silent, other) is None, "its load has just come"
    world.core.choose(Prompt("a", hashes(0, 5), 20, BLOCK_SIZE), now=0.0, pinned_rank=0)

    async def is_suspect() -> bool:
        return await miss(world, silent, other) is not None

    await until(is_suspect, "suspect", LOAD_LATE_S + DEADLINE_S)
    (member, _) = world.tracker.members()
    assert (member.unavailable or "").startswith("no answer for 2 s, no load report for 2 s")
    assert world.core.membership.routable == {1: "exact"}
    assert len(world.core.reservations) == 0
    world.core.check_integrity()

    # It goes on: its events were followed all the time.
    silent.store(hashes(7000, 2))
    await world.poll(silent, other)
    assert world.core.membership.routable.keys() == {0, 1}
    assert world.tracker.standing(0, silent.replica_id) == USABLE
    await world.until_known(silent)
    assert any("rank 0: available again (was: no answer for" in each.message for each in caplog.records)
    await world.close()


async def test_a_rank_that_answers_nothing_but_sends_its_load_gets_its_time(world: Follower) -> None:
    silent, other = await start(world, 0), await start(world, 1)

    async def is_suspect() -> bool:
        silent.publisher.publish_load(load_stat(rank=0), [])
        return await miss(world, silent, other) is not None

    assert not await is_suspect()
    await until(is_suspect, "suspect after the timeout", DEADLINE_S)
    reason = world.tracker.standing(0, silent.replica_id).reason
    assert reason == "no answer for 1 s"


async def test_the_last_rank_is_suspect_only_after_the_timeout() -> None:
    world = Follower(stall_timeout_s=1000.0)
    first, second = await start(world, 0), await start(world, 1)
    absent = {first.replica_id: SILENT, second.replica_id: SILENT}

    async def one_is_left() -> bool:
        await world.tracker.update([], absent)
        return len(world.core.membership.routable) == 1

    await until(one_is_left, "one suspect", LOAD_LATE_S + DEADLINE_S)
    await world.tracker.update([], absent)
    assert len(world.core.membership.routable) == 1
    await world.close()


async def test_a_rank_that_sends_no_load_is_suspect_after_the_timeout(world: Follower) -> None:
    await world.tracker.update([description(0, "a"), description(1, "b")])

    async def is_suspect() -> bool:
        await world.tracker.update([description(1, "b")], {"a": SILENT})
        return 0 not in world.core.membership.routable

    assert not await is_suspect()
    await until(is_suspect, "suspect", DEADLINE_S)
    assert world.tracker.standing(0, "a").state == "unavailable"
    await world.tracker.update([description(0, "a"), description(1, "b")])
    assert world.tracker.standing(0, "a") == USABLE


async def test_a_rank_that_says_that_it_failed_is_unavailable_at_once(world: Follower) -> None:
    await world.tracker.update([description(0, "a")])
    await world.tracker.update([], {"a": Absence("failed", "its engine has stopped")})
    assert world.core.membership.routable.unavailable == {0: "its engine has stopped"}


async def test_a_report_of_a_failure_on_a_suspect_rank_drops_nothing(world: Follower) -> None:
    silent, other = await start(world, 0), await start(world, 1)

    async def is_suspect() -> bool:
        return await miss(world, silent, other) is not None

    await until(is_suspect, "suspect", DEADLINE_S)
    world.tracker.mark_failed(0, silent.replica_id)
    assert world.core.index.blocks_of(0) == set(silent.held)
    assert world.tracker.standing(0, silent.replica_id).state == "unavailable"
