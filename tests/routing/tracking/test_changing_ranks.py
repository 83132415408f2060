"""What a rank says of itself changes while it lives: it can serve nothing now, its cache is known in part.

Real publishers on loopback sockets, real subscribers and a real tracker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import NoRankError
from app.routing.core import RoutingCore
from app.routing.decisions.decision import Decision, Prompt
from app.routing.tracking.audit import Auditor
from app.routing.tracking.description import Absence
from tests.support.deadlines import until
from tests.support.routing.cores import assigned, load_stat
from tests.support.routing.live_ranks import (
    BLOCK_SIZE,
    DEADLINE_S,
    MAX_PROMPT,
    Follower,
    LiveRank,
    description,
    hashes,
)

DOWN = "worker http://w:1 refuses connections"
LATE = "adopted after batch 7"


@pytest.fixture
async def world() -> AsyncIterator[Follower]:
    world = Follower()
    yield world
    await world.close()


async def start(world: Follower, rank: int = 0) -> LiveRank:
    """A rank that holds five blocks, all known."""
    live = world.start(rank)
    live.store(hashes(0, 5))
    await world.poll(*world.polled, live)
    await world.until_live(live)
    return live


def choose(core: RoutingCore, request_id: str = "a", *, pinned: int | None = None) -> Decision:
    return core.choose(Prompt(request_id, hashes(0, 5), 20, BLOCK_SIZE), now=0.0, pinned_rank=pinned)


async def test_an_unavailable_rank_gets_nothing_is_followed_on_and_is_back_when_it_is_well(
    world: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    live, other = await start(world), await start(world, rank=1)
    choose(world.core, pinned=0)
    live.unavailable = DOWN
    await world.poll(live, other)
    assert world.core.membership.routable == {1: "exact"}
    assert world.core.membership.routable.unavailable == {0: DOWN}
    assert [member.unavailable for member in world.tracker.members()] == [DOWN, None]
    assert len(world.core.reservations) == 0
    assert choose(world.core).rank == 1
    with pytest.raises(NoRankError, match=f"rank 0.*: unavailable: {DOWN}; these can"):
        choose(world.core, pinned=0)

    live.store(hashes(3000, 2))
    await world.until_known(live)
    before = world.tracker.members()[0].status
    live.unavailable = None
    live.load = load_stat(waiting_tokens=7)
    await world.poll(live, other)
    assert world.core.membership.routable == {0: "exact", 1: "exact"}
    assert world.core.membership.routable.unavailable == {}
    assert world.core.load.waiting_tokens(0) == 7
    assert choose(world.core, pinned=0).cached_tokens == 4 * BLOCK_SIZE
    assert world.tracker.members()[0].status.resyncs == before.resyncs
    world.core.check_integrity()
    said = [each.message for each in caplog.records if "available" in each.message]
    assert said == [f"rank 0: unavailable ({DOWN})", f"rank 0: available again (was: {DOWN})"]


async def test_an_unavailable_rank_that_lost_its_cache_publishes_that(world: Follower) -> None:
    live = await start(world)
    live.unavailable = DOWN
    live.clear()
    await world.until_known(live)
    assert world.core.index.num_blocks == 0
    live.store(hashes(500, 2))
    live.unavailable = None
    await world.until_known(live)
    assert choose(world.core).cached_tokens == 0


async def test_load_of_an_unavailable_rank_counts_nowhere(
    world: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await start(world)
    live.unavailable = DOWN
    live.load = load_stat(waiting_tokens=50)
    await world.poll(live)

    acknowledged: list[tuple[int, Sequence[str]]] = []
    monkeypatch.setattr(
        world.core.reservations, "acknowledge", lambda rank, ids: acknowledged.append((rank, ids))
    )

    def received() -> bool:
        # An acknowledgement comes after the report that it belongs to.
        live.publisher.publish_load(load_stat(waiting_tokens=70), acknowledged=["a"])
        return bool(acknowledged)

    await until(received, "a load report has come", DEADLINE_S)
    assert (world.core.load.last_report(0), world.core.load.waiting_tokens(0)) == (None, 0)
    live.unavailable = None
    await world.poll(live)
    assert world.core.load.waiting_tokens(0) == 50


async def test_a_rank_that_is_unavailable_at_first_sight_is_followed_all_the_same(world: Follower) -> None:
    live = world.start()
    live.store(hashes(0, 5))
    live.unavailable = DOWN
    await world.poll(live)
    await world.until_known(live)
    assert world.core.membership.routable == {}
    assert not world.tracker.routes_to(0, live.replica_id)
    with pytest.raises(
        NoRankError, match=rf"no rank can take requests now: ranks \[0\] are unavailable: {DOWN}"
    ):
        choose(world.core)
    live.unavailable = None
    await world.poll(live)
    assert world.tracker.routes_to(0, live.replica_id)
    assert not world.tracker.routes_to(0, "another")
    assert choose(world.core).cached_tokens == 4 * BLOCK_SIZE


async def test_a_failed_request_and_the_ranks_own_word_agree(world: Follower) -> None:
    live = await start(world)
    # A request was refused there before a poll could say why.
    world.tracker.mark_failed(0, live.replica_id)
    assert world.core.membership.routable.unavailable == {}
    live.unavailable = DOWN
    await world.poll(live)
    assert world.core.membership.routable.unavailable == {0: DOWN}
    await world.until_known(live)

    # A late report of another such request: nothing is loaded again for it.
    world.tracker.mark_failed(0, live.replica_id)
    assert world.core.membership.routable.unavailable == {0: DOWN}
    assert world.core.index.blocks_of(0) == set(live.held)
    live.unavailable = None
    await world.poll(live)
    assert world.core.membership.routable == {}, "this poll may be older than the failure"
    await world.poll(live)
    assert world.core.membership.routable == {0: "exact"}


async def test_an_unavailable_rank_that_dies_is_dropped_and_its_replacement_followed(world: Follower) -> None:
    down = replace(description(0, "a"), unavailable=DOWN)
    await world.tracker.update([down])
    world.tracker.mark_failed(0, "a")
    await world.tracker.update([], {"a": Absence("gone", "it has died")})
    assert world.tracker.members() == []
    assert world.core.membership.routable.unavailable == {}
    with pytest.raises(NoRankError, match="no rank is alive"):
        choose(world.core)
    await world.tracker.update([down])
    await world.tracker.update([description(0, "b")])
    assert world.core.membership.routable == {0: "stale"}


async def test_a_returning_rank_starts_no_further_behind_than_its_peers(world: Follower) -> None:
    both = [description(0, "a"), description(1, "b")]
    down = [replace(both[0], unavailable=DOWN), both[1]]
    await world.tracker.update(down)
    for i in range(10):
        choose(world.core, f"r{i}")
        world.core.reservations.release(f"r{i}")
    await world.tracker.update(both)
    assert assigned(world.core, 0) == assigned(world.core, 1) == (200, 10)


async def test_prompts_are_too_long_only_when_some_rank_says_so_that_serves(world: Follower) -> None:
    never_up = replace(description(0, "a"), unavailable=DOWN, max_prompt_tokens=0)
    await world.tracker.update([never_up])
    assert world.tracker.max_prompt_tokens() is None
    await world.tracker.update([never_up, description(1, "b")])
    assert world.tracker.max_prompt_tokens() == MAX_PROMPT
    await world.tracker.update([replace(never_up, max_prompt_tokens=2 * MAX_PROMPT), description(1, "b")])
    assert world.tracker.max_prompt_tokens() == 2 * MAX_PROMPT
    world.tracker.mark_failed(1, "b")
    assert world.tracker.max_prompt_tokens() is None


async def test_a_partial_cache_is_followed_exactly_and_called_partial(world: Follower) -> None:
    live = world.start()
    live.store(hashes(0, 3))
    live.partial_cache = LATE
    await world.poll(live)
    assert world.core.membership.routable == {0: "syncing"}
    await world.until_known(live, "partial")
    assert world.core.membership.routable == {0: "partial"}
    (member,) = world.tracker.members()
    assert (member.status.state, member.status.reason) == ("partial", LATE)
    assert (choose(world.core).cached_tokens, choose(world.core).trust) == (3 * BLOCK_SIZE, "partial")
    auditor = Auditor(world.tracker, world.core.index, world.fetch_snapshot)
    (audit,) = await auditor.audit([0])
    assert (audit.verdict, audit.equal, audit.trust, audit.num_rank_blocks) == ("equal", True, "partial", 3)


async def test_a_partial_cache_becomes_whole_by_a_flush_and_partial_by_another_adoption(
    world: Follower,
) -> None:
    live = await start(world)
    whole = world.tracker.members()[0].status
    live.partial_cache = LATE
    live.clear()
    live.store(hashes(700, 1))
    await world.until_known(live, "partial")
    partial = world.tracker.members()[0].status
    assert (partial.state, partial.reason, partial.resyncs) == ("partial", LATE, whole.resyncs)
    assert partial.since > whole.since
    await world.poll(live)
    assert world.tracker.members()[0].status.since == partial.since

    live.partial_cache = None
    live.clear()
    await world.until_known(live)
    flushed = world.tracker.members()[0].status
    assert (flushed.state, flushed.reason) == ("exact", LATE)
    assert flushed.since > partial.since
    assert world.core.membership.routable == {0: "exact"}


async def test_a_partial_rank_that_starts_again_is_credited_nothing_until_it_is_known(
    world: Follower,
) -> None:
    live = await start(world)
    live.partial_cache = LATE
    await world.until_known(live, "partial")
    # The publisher starts again: nothing of its predecessor counts.
    port = live.port
    live.publisher.close()
    live.publisher = live.start_publisher(port)
    del world.ranks[live.replica_id]  # no snapshot comes of it meanwhile
    await world.poll(live)
    assert world.core.membership.routable[0] in ("syncing", "stale")
    assert choose(world.core).cached_tokens == 0
    world.ranks[live.replica_id] = live
    await world.until_known(live, "partial")
    assert choose(world.core).cached_tokens == 4 * BLOCK_SIZE


async def test_a_rank_without_events_is_stale_however_whole_its_cache_is(world: Follower) -> None:
    await world.tracker.update([replace(description(0, "a"), partial_cache=LATE)])
    assert world.core.membership.routable == {0: "stale"}


SAID = st.sampled_from([None, DOWN, "another model"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("poll"), st.dictionaries(st.integers(0, 1), SAID)),
        st.tuples(st.just("fail"), st.integers(0, 1)),
        st.tuples(st.just("choose"), st.integers(0, 3)),
        st.tuples(st.just("peer"), st.integers(0, 1)),
    ),
    max_size=30,
)


@given(steps=STEPS)
def test_whatever_ranks_say_and_requests_find_a_router_is_consistent(steps: list[tuple[str, object]]) -> None:
    asyncio.run(run(steps))


async def run(steps: list[tuple[str, object]]) -> None:
    world = Follower()
    core, failed = world.core, set[int]()
    for kind, what in steps:
        match kind, what:
            case "poll", dict() as said:
                polled = [
                    replace(description(rank, f"{rank}"), unavailable=why) for rank, why in said.items()
                ]
                await world.tracker.update(polled)
                for rank, why in said.items():
                    if why is not None:
                        assert core.membership.routable.unavailable[rank] == why
                    elif rank not in failed:
                        assert core.membership.routable[rank] == "stale"
                failed.clear()
            case "fail", int(rank):
                failed |= {member.rank for member in world.tracker.members() if member.rank == rank}
                world.tracker.mark_failed(rank, f"{rank}")
                assert rank not in core.membership.routable
            case "choose", int(number):
                if core.membership.routable:
                    assert choose(core, f"r{number}").rank in core.membership.routable
                else:
                    with pytest.raises(NoRankError) as caught:
                        choose(core, f"r{number}")
                    reasons = core.membership.routable.unavailable.values()
                    assert all(why in caught.value.message for why in reasons)
            case "peer", int(rank):
                if world.tracker.routes_to(rank, f"{rank}"):
                    core.reservations.add_from_peer(rank, "peer", 5, now=0.0, choice_seq=0)
        core.check_integrity()
        routable = core.membership.routable
        assert {
            member.rank for member in world.tracker.members()
        } == routable.keys() | routable.unavailable.keys()
        assert not routable.keys() & routable.unavailable.keys()
        assert core.load.reserved().keys() <= routable.keys()
    await world.close()


async def test_a_replica_is_left_out_by_the_number_that_it_has_or_had(world: Follower) -> None:
    await start(world)
    other = await start(world, rank=1)
    first, ranks_of = world.tracker.replica_id(0), world.tracker.ranks_of
    assert ranks_of({}) == frozenset()
    assert ranks_of({first: 0}) == {0}
    assert ranks_of({first: 0, world.tracker.replica_id(1): 5}) == {0, 1, 5}, "it was 5, and nothing is now"
    world.tracker.mark_failed(0, first)
    assert ranks_of({first: 0}) == {0}
    await world.poll(world.start(0), other)
    assert ranks_of({first: 0}) == frozenset(), "another replica has the number now"
