"""Replicas whose numbers change, or that claim one number: what is held of a rank is of one replica."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import NoRankError, UnknownRankError
from app.routing.decisions.decision import Prompt
from app.routing.decisions.explanation import explanation
from app.routing.tracking.description import Absence
from app.routing.tracking.tracker import Tracker
from tests.support.routing.cores import new_core, set_routable
from tests.support.routing.live_ranks import BLOCK_SIZE, Follower, description, hashes


@pytest.fixture
async def world() -> AsyncIterator[Follower]:
    world = Follower()
    yield world
    await world.close()


def prompt(request_id: str = "a") -> Prompt:
    return Prompt(request_id, hashes(0, 4), 20, BLOCK_SIZE)


async def test_a_renumbered_replica_is_followed_under_its_new_number_in_the_same_update(
    world: Follower,
) -> None:
    live = world.start(rank=2)
    live.store(hashes(0, 4))
    await world.poll(live)
    await world.until_known(live)
    world.core.choose(prompt(), now=0.0)
    assert len(world.core.reservations) == 1
    live.publisher.close()
    live.rank = 0
    live.publisher = live.start_publisher(None)
    await world.poll(live)
    assert [member.rank for member in world.tracker.members()] == [0]
    assert world.core.index.blocks_of(2) == set()
    assert len(world.core.reservations) == 0
    assert world.tracker.counters.renumbered == 1
    await world.until_known(live)
    assert world.tracker.standing(2, live.replica_id).state == "usable", "requests that it has go on"
    world.core.check_integrity()


async def test_numbers_that_are_exchanged(world: Follower) -> None:
    tracker = world.tracker
    await tracker.update([description(0, "a"), description(1, "b")])
    await tracker.update([description(1, "a"), description(0, "b")])
    assert [(each.rank, each.replica_id) for each in tracker.members()] == [(0, "b"), (1, "a")]
    assert (tracker.counters.renumbered, tracker.counters.conflicts) == (2, 0)


async def test_a_second_claimant_is_logged_counted_and_shown_once(
    world: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = world.tracker
    await tracker.update([description(0, "first")])
    both = [description(0, "second"), description(0, "first")]
    for _ in range(3):
        await tracker.update(both)
    (member,) = tracker.members()
    assert (member.replica_id, member.other_replicas) == ("first", ["second"])
    assert tracker.counters.conflicts == 1
    said = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert said == ["rank 0: replica second claims it too; first keeps it until it stops claiming"]
    assert tracker.standing(0, "second").state == "usable"
    await tracker.update([description(0, "second")], {"first": Absence("gone", "it is being stopped")})
    (member,) = tracker.members()
    assert (member.replica_id, member.other_replicas) == ("second", [])
    assert tracker.standing(0, "first").state == "gone"


async def test_the_second_claimant_that_yields_is_followed_where_it_went(world: Follower) -> None:
    tracker = world.tracker
    await tracker.update([description(1, "first"), description(1, "second")])
    await tracker.update([description(1, "first"), description(3, "second")])
    assert [(each.rank, each.replica_id) for each in tracker.members()] == [(1, "first"), (3, "second")]


async def test_a_renumbered_replica_that_is_seen_dead_is_dropped(world: Follower) -> None:
    tracker = world.tracker
    await tracker.update([description(1, "a")])
    await tracker.update([description(0, "a")])
    tracker.mark_failed(1, "a")
    assert tracker.members() == []


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcd")), max_size=4), max_size=8))
async def test_whatever_replicas_claim_each_number_is_one_of_its_claimants(
    polls: Sequence[Sequence[tuple[int, str]]],
) -> None:
    core = new_core(dp_size=2)
    set_routable(core, {})
    tracker = Tracker(core, Follower().fetch_snapshot, stall_timeout_s=10.0)
    for poll in polls:
        claims = {replica_id: rank for rank, replica_id in poll}
        await tracker.update([description(rank, replica_id) for replica_id, rank in claims.items()])
        members = tracker.members()
        assert len({each.replica_id for each in members}) == len(members), "no replica is two ranks"
        assert {each.rank for each in members} >= set(claims.values())
        for member in members:
            claimants = {name for name, rank in claims.items() if rank == member.rank}
            if claimants:
                assert {member.replica_id, *member.other_replicas} == claimants
        core.check_integrity()
    await tracker.close()


def test_a_rank_that_is_pinned_must_be_there_or_may_come() -> None:
    core = new_core(dp_size=2)
    set_routable(core, {0: "exact", 3: "exact"})
    assert core.consider(prompt(), 0.0, pinned_rank=3).rank == 3
    for pinned in (1, 2):
        with pytest.raises(NoRankError, match=rf"rank {pinned}, which .*: not alive; these can: \[0, 3\]"):
            core.consider(prompt(), 0.0, pinned_rank=pinned)
    for pinned in (-1, 4):
        with pytest.raises(UnknownRankError, match=rf"routed_dp_rank = {pinned}: allowed are 0 to 3"):
            core.consider(prompt(), 0.0, pinned_rank=pinned)
    set_routable(core, {})
    with pytest.raises(UnknownRankError, match="allowed are 0 to 1"):
        core.consider(prompt(), 0.0, pinned_rank=2)


def test_a_receipt_has_every_rank_that_was_there_or_should_be() -> None:
    core = new_core(dp_size=2)
    set_routable(core, {0: "exact", 3: "exact"})
    core.membership.set_unavailable(2, "down")
    rows = explanation(core.consider(prompt(), 0.0), dp_size=2)["ranks"]
    assert [(each["rank"], each["why_not"]) for each in rows] == [
        (0, None),
        (1, "not alive"),
        (2, "unavailable: down"),
        (3, None),
    ]


async def test_a_replica_that_failed_is_not_believed_under_another_number_either(world: Follower) -> None:
    tracker = world.tracker
    await tracker.update([description(2, "a")])
    tracker.mark_failed(2, "a")
    await tracker.update([description(1, "a")])
    assert tracker.members() == [], "this poll may be older than the failure"
    await tracker.update([description(1, "a")])
    assert [each.rank for each in tracker.members()] == [1]
