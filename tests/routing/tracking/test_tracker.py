"""Tracker with real publishers on loopback sockets: which ranks there are, and what counts of each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from app.events.publisher_info import PublisherAddress, PublisherInfo, PublisherState
from app.events.schema import BlockRemoved, LoadStat
from app.routing.decisions.decision import Prompt
from app.routing.tracking.description import Absence, RankDescription
from app.routing.tracking.standing import USABLE, Standing
from tests.support.deadlines import until
from tests.support.depths import depth_by_rank
from tests.support.routing.cores import load_stat
from tests.support.routing.live_ranks import (
    BLOCK_SIZE,
    DEADLINE_S,
    MAX_PROMPT,
    Follower,
    description,
    hashes,
)

DISABLED = PublisherInfo(
    PublisherAddress(0, "", 0, None, None, "", None, BLOCK_SIZE), PublisherState("", -1, "disabled")
)


@pytest.fixture
async def world() -> AsyncIterator[Follower]:
    world = Follower()
    yield world
    await world.close()


async def test_follows_snapshot_then_events(world: Follower) -> None:
    live = world.start()
    live.store(hashes(0, 5))
    await world.poll(live)
    await world.until_known(live)
    live.store(hashes(1000, 3))
    live.remove(hashes(0, 5)[3:])
    await world.until_known(live)
    assert depth_by_rank(world.core.index, hashes(0, 5)) == {0: 3}
    assert depth_by_rank(world.core.index, hashes(1000, 3)) == {0: 3}
    (member,) = world.tracker.members()
    assert (member.rank, member.replica_id, member.status.state) == (0, live.replica_id, "exact")
    assert member.num_blocks == 6
    world.core.index.check_integrity()


async def test_says_how_a_replica_stands(world: Follower) -> None:
    live = world.start()
    tracker = world.tracker
    await world.poll(live)
    assert tracker.standing(0, live.replica_id) == USABLE
    assert tracker.standing(1, live.replica_id) == USABLE, "its number may have changed since"
    live.unavailable = "its worker is down"
    await world.poll(live)
    assert tracker.standing(0, live.replica_id) == Standing("unavailable", "its worker is down")
    await world.tracker.update([], {live.replica_id: Absence("gone", "it is being stopped")})
    assert tracker.standing(0, live.replica_id) == Standing("gone", "it is being stopped")
    assert world.core.membership.routable == {}
    assert tracker.members() == []
    live.unavailable = None
    await world.poll(live)
    assert tracker.standing(0, live.replica_id) == USABLE


async def test_a_replica_that_was_never_asked_is_usable_until_it_was(world: Follower) -> None:
    tracker = world.tracker
    assert tracker.standing(0, "a") == tracker.standing(1, "b") == tracker.standing(1, "c") == USABLE
    assert tracker.take_unknown() == {"a", "b", "c"}
    assert tracker.take_unknown() == set()
    absent = {"b": Absence("silent"), "c": Absence("gone", "it has died")}
    await tracker.update([description(0, "a")], absent)
    assert tracker.standing(0, "a") == USABLE
    assert tracker.standing(1, "b") == Standing("unavailable", "it doesn't answer")
    assert tracker.standing(1, "c") == Standing("gone", "it has died")
    assert tracker.take_unknown() == set()
    await tracker.update([description(0, "a"), description(0, "b")])
    assert tracker.standing(1, "b") == USABLE, "it claims another's number, but it lives"


async def test_load_comes_by_itself_and_acknowledges_reservations(world: Follower) -> None:
    live = world.start()
    await world.poll(live)
    await world.until_known(live)
    prompt = Prompt("a", hashes(0, 5), 20, BLOCK_SIZE)
    world.core.choose(prompt, now=0.0)
    assert world.core.load.waiting_tokens(0) == 20

    def reported() -> bool:
        # Sent again until received: the load socket may still be connecting.
        live.publisher.publish_load(load_stat(waiting_tokens=17), acknowledged=["a"])
        return len(world.core.reservations) == 0

    await until(reported, "the rank has acknowledged the request", DEADLINE_S)
    assert world.core.load.waiting_tokens(0) == 17


async def test_a_replaced_rank_is_credited_nothing_of_its_predecessor(world: Follower) -> None:
    old = world.start()
    old.store(hashes(0, 5))
    await world.poll(old)
    await world.until_known(old)
    world.core.choose(Prompt("a", [], 20, BLOCK_SIZE), now=0.0)

    new = world.start()
    new.store(hashes(1000, 2))
    await world.poll(new)
    assert depth_by_rank(world.core.index, hashes(0, 5)) == {}
    assert (len(world.core.reservations), world.core.load.waiting_tokens(0)) == (0, 0)
    await world.until_known(new)
    assert world.tracker.replica_id(0) == new.replica_id

    # The old publisher still sends; no subscriber receives it.
    old.store(hashes(5000, 2))
    new.store(hashes(2000, 2))
    await world.until_known(new)
    assert depth_by_rank(world.core.index, hashes(5000, 2)) == {}


async def test_a_replica_that_takes_over_the_same_port_is_followed(world: Follower) -> None:
    old = world.start()
    old.store(hashes(0, 5))
    await world.poll(old)
    await world.until_known(old)
    old.publisher.close()
    new = world.start(port=old.port)
    new.store(hashes(1000, 2))
    await world.poll(new)
    assert depth_by_rank(world.core.index, hashes(0, 5)) == {}
    await world.until_known(new)


async def test_ports_that_the_system_chooses_are_followed_also_after_a_restart(world: Follower) -> None:
    ranks = [world.start(rank, port=0) for rank in range(2)]
    for live in ranks:
        live.store(hashes(1000 * live.rank, 5))
    await world.poll(*ranks)
    for live in ranks:
        await world.until_known(live)
    old, other = ranks
    old.publisher.close()
    new = world.start(port=0)
    assert len({live.publisher.info("").address.event_port for live in (old, other, new)}) == 3
    new.store(hashes(5000, 2))
    await world.poll(new, other)
    assert depth_by_rank(world.core.index, hashes(0, 5)) == {}
    await world.until_known(new)
    new.store(hashes(6000, 2))
    await world.until_known(new)
    assert world.core.load.last_report(0) is not None


async def test_a_publisher_started_again_in_the_same_replica_is_followed(world: Follower) -> None:
    live = world.start()
    live.store(hashes(0, 5))
    await world.poll(live)
    await world.until_known(live)
    port = live.port
    live.publisher.close()
    live.held.clear()
    live.publisher = live.start_publisher(port)
    await world.poll(live)
    assert world.core.index.num_blocks == 0
    live.store(hashes(1000, 2))
    await world.until_known(live)


async def test_lost_last_batches_are_noticed_from_descriptions(world: Follower) -> None:
    live = world.start()
    await world.poll(live)
    await world.until_known(live)
    # The rank says that it has published a batch that never arrives.
    live.held.update(dict.fromkeys(hashes(0, 2)))
    described = live.describe()
    assert described.publisher is not None
    state = described.publisher.state
    ahead = PublisherInfo(
        described.publisher.address, msgspec.structs.replace(state, last_seq=state.last_seq + 1)
    )

    async def is_known() -> bool:
        await world.tracker.update([replace(described, publisher=ahead)])
        return world.core.index.blocks_of(0) == set(live.held)

    await until(is_known, "the router has loaded the rank again", DEADLINE_S)


async def test_blocks_in_other_media_are_not_credited(world: Follower) -> None:
    live = world.start()
    await world.poll(live)
    await world.until_known(live)
    live.store(hashes(0, 2), medium="CPU")
    live.store(hashes(1000, 2))
    await world.until_known(live)
    assert depth_by_rank(world.core.index, hashes(0, 2)) == {}


async def test_copies_are_counted_as_vllm_publishes_them(world: Follower) -> None:
    """It stores and removes the same block once per request that has it."""
    live = world.start()
    await world.poll(live)
    await world.until_live(live)
    chained = hashes(0, 3)
    live.store(chained)
    live.store(chained)
    live.publisher.publish([BlockRemoved(chained[1:], "GPU")])
    live.store(hashes(500, 1))
    await world.until_known(live)
    assert depth_by_rank(world.core.index, chained) == {0: 3}
    live.remove(chained[1:])
    await world.until_known(live)
    assert depth_by_rank(world.core.index, chained) == {0: 1}


@pytest.mark.parametrize("publisher", [None, DISABLED])
async def test_a_rank_that_publishes_nothing_is_routed_by_its_described_load(
    world: Follower, publisher: PublisherInfo | None
) -> None:
    def silent(load: LoadStat) -> RankDescription:
        return RankDescription(0, "silent", publisher, load, MAX_PROMPT)

    await world.tracker.update([silent(load_stat(waiting_tokens=5)), description(1, "other")])
    assert world.core.membership.routable == {0: "stale", 1: "stale"}
    assert {member.status.reason for member in world.tracker.members()} == {"no events published"}
    assert world.core.load.waiting_tokens(0) == 5
    prompt = Prompt("a", hashes(0, 2), 8, BLOCK_SIZE)
    assert world.core.choose(prompt, now=0.0).rank == 1
    await world.tracker.update([silent(load_stat(waiting_tokens=0)), description(1, "other")])
    assert world.core.load.waiting_tokens(0) == 0


async def test_a_rank_that_acknowledges_nothing_counts_a_request_once(world: Follower) -> None:
    async def poll(waiting_tokens: int) -> None:
        await world.tracker.update([description(0, "silent", load_stat(waiting_tokens=waiting_tokens))])

    await poll(0)
    world.core.choose(Prompt("a", [], 8, BLOCK_SIZE), now=0.0)
    await poll(0)  # may have been answered before the request came to the rank
    assert world.core.load.waiting_tokens(0) == 8
    await poll(8)
    assert world.core.load.waiting_tokens(0) == 8
    await poll(0)
    assert world.core.load.waiting_tokens(0) == 0
    assert world.core.load.num_requests(0) == 0


async def test_a_description_older_than_the_last_report_is_ignored(world: Follower) -> None:
    await world.tracker.update(
        [description(0, "a", load_stat(waiting_tokens=5, prefilled=500, busy_us=500_000))]
    )
    await world.tracker.update(
        [description(0, "a", load_stat(waiting_tokens=9, prefilled=400, busy_us=400_000))]
    )
    assert world.core.load.waiting_tokens(0) == 5


async def test_the_last_rank_is_dropped_at_once_when_ray_no_longer_has_it(world: Follower) -> None:
    live = world.start()
    live.store(hashes(0, 2))
    await world.poll(live)
    await world.until_known(live)
    world.core.choose(Prompt("a", [], 20, BLOCK_SIZE), now=0.0)
    await world.tracker.update([], {live.replica_id: Absence("gone", "it has died")})
    assert world.core.membership.routable == {}
    assert world.tracker.members() == []
    assert (world.core.index.num_blocks, len(world.core.reservations)) == (0, 0)
    await world.poll(live)
    await world.until_known(live)


async def test_a_rank_that_ray_leaves_out_for_a_moment_keeps_its_blocks(world: Follower) -> None:
    """As it does while it gives the replica other settings."""
    live, other = world.start(0), world.start(1)
    live.store(hashes(0, 2))
    gone = {live.replica_id: Absence("gone", "it is being stopped")}
    await world.poll(live, other)
    await world.until_known(live)
    for _ in range(2):
        world.core.choose(Prompt("a", [], 20, BLOCK_SIZE), now=0.0, pinned_rank=0)
        await world.tracker.update([other.describe()], gone)
        assert 0 not in world.core.membership.routable
        assert len(world.core.reservations) == 0
        assert world.tracker.standing(0, live.replica_id).state == "gone"
        await world.poll(live, other)
        assert world.core.membership.routable[0] == "exact"
    assert world.core.index.num_blocks == 2

    for _ in range(2):
        await world.tracker.update([other.describe()], gone)
    assert [each.rank for each in world.tracker.members()] == [1]
    assert world.core.index.num_blocks == 0


async def test_a_failed_rank_is_dropped_at_once_and_back_when_it_still_answers(world: Follower) -> None:
    live = world.start()
    live.store(hashes(0, 2))
    await world.poll(live)
    await world.until_known(live)
    world.tracker.mark_failed(0, live.replica_id)
    assert world.core.membership.routable == {}
    assert world.core.index.num_blocks == 0
    # This poll may have begun before the failure.
    await world.poll(live)
    assert world.core.membership.routable == {}
    await world.poll(live)
    await world.until_known(live)


async def test_a_failed_ranks_replacement_is_followed_at_once(world: Follower) -> None:
    await world.tracker.update([description(0, "a")])
    world.tracker.mark_failed(0, "a")
    await world.tracker.update([description(0, "a"), description(0, "b")])
    assert world.tracker.replica_id(0) == "b"


async def test_a_late_report_of_a_predecessors_death_changes_nothing(world: Follower) -> None:
    await world.tracker.update([description(0, "b")])
    world.tracker.mark_failed(0, "a")
    world.tracker.mark_failed(7, "a")
    assert world.core.membership.routable == {0: "stale"}


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
async def test_a_rank_stays_with_its_replica_while_two_claim_it(
    world: Follower, order: tuple[str, str]
) -> None:
    await world.tracker.update([description(0, "old")])
    await world.tracker.update([description(0, replica_id) for replica_id in order])
    assert world.tracker.replica_id(0) == "old"
    await world.tracker.update([description(0, "new")])
    assert world.tracker.replica_id(0) == "new"


async def test_two_ranks_are_kept_apart(world: Follower) -> None:
    first = world.start(rank=0)
    second = world.start(rank=1)
    first.store(hashes(0, 4))
    second.store(hashes(0, 2))
    await world.poll(first, second)
    await world.until_known(first)
    await world.until_known(second)
    assert depth_by_rank(world.core.index, hashes(0, 4)) == {0: 4, 1: 2}
    await world.tracker.update([first.describe(), description(1, "replacement")])
    assert depth_by_rank(world.core.index, hashes(0, 4)) == {0: 4}


async def test_only_a_router_that_goes_on_warns_of_a_rank_that_it_drops(
    world: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await world.tracker.update([description(0, "a"), description(1, "b")])
    world.tracker.mark_failed(0, "a")
    await world.tracker.close()
    dropped = [(each.levelname, each.message) for each in caplog.records if "dropping" in each.message]
    assert dropped == [
        ("WARNING", "rank 0: dropping a (reported dead)"),
        ("INFO", "rank 1: dropping b (router closes)"),
    ]


async def test_closing_leaves_nothing_behind(world: Follower) -> None:
    before = asyncio.all_tasks()
    live = world.start()
    live.store(hashes(0, 2))
    await world.poll(live)
    await world.until_known(live)
    await world.tracker.close()
    assert asyncio.all_tasks() == before
    assert world.tracker.members() == []
    assert (world.core.index.num_blocks, len(world.core.reservations)) == (0, 0)


async def test_what_a_poll_says_no_more_of_replicas_that_are_gone_still_holds(world: Follower) -> None:
    first, second = world.start(), world.start(1)
    await world.poll(first, second)
    absence = Absence("gone", "it is being stopped")
    await world.tracker.update([], {first.replica_id: absence, second.replica_id: absence})
    await world.tracker.update([])
    assert world.tracker.members() == []
