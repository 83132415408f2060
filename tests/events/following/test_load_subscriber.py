"""Load reports and acknowledgements, of real publishers."""

from __future__ import annotations

from app.events.schema import LoadStat
from tests.support.deadlines import comes_true
from tests.support.events.blocks import Blocks
from tests.support.events.ranks import STAT, MakeRank
from tests.support.events.waiting import Follow


async def test_load_reports_and_acknowledgements_arrive(make_rank: MakeRank, follow: Follow) -> None:
    rank = make_rank()
    loads: list[LoadStat] = []
    acknowledged: list[str] = []
    follow(
        rank.info,
        rank,
        Blocks(),
        on_load=loads.append,
        on_acknowledged=acknowledged.extend,
    )

    def arrived() -> bool:
        rank.publisher.publish_load(STAT, ["r1", "r2"])
        return bool(loads and acknowledged)

    assert await comes_true(arrived)
    assert loads[0] == STAT
    assert acknowledged[:2] == ["r1", "r2"]


async def test_a_load_report_of_another_rank_is_a_bad_message(make_rank: MakeRank, follow: Follow) -> None:
    rank = make_rank()
    loads: list[LoadStat] = []
    subscriber = follow(rank.info, rank, Blocks(), on_load=loads.append)
    stray = LoadStat(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)

    def counted() -> bool:
        rank.publisher.publish_load(stray)
        return subscriber.status.bad_messages > 0

    assert await comes_true(counted)
    assert loads == []


async def test_a_callback_that_fails_does_not_stop_the_reports(make_rank: MakeRank, follow: Follow) -> None:
    rank = make_rank()
    calls: list[LoadStat] = []

    def fail(stat: LoadStat) -> None:
        calls.append(stat)
        raise RuntimeError("no")

    follow(rank.info, rank, Blocks(), on_load=fail)

    def called_twice() -> bool:
        rank.publisher.publish_load(LoadStat(0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
        return len(calls) > 1

    assert await comes_true(called_twice)
