"""What a client is told of its cached and missed tokens, early and late."""

from __future__ import annotations

from typing import Any

import pytest

from app.deployments.ingress.misses.cache_report import CACHE_HEADER, CacheReport
from app.deployments.ingress.misses.misses_answer import misses_answer, wanted_rows
from app.deployments.messages import FoundMisses
from app.errors import InvalidRequestError
from app.routing.misses.miss import Change, Miss

FOUND = FoundMisses(
    [Miss("diverged", 1024, 16), Miss("volatile", 1040, 5888), Miss("new", 6928, 304), Miss("tail", 7232, 6)],
    Change(1030, 2, "user", 0),
)


class Begun:
    """What a report reads of a stream."""

    def __init__(self, num_prompt_tokens: int, num_cached_tokens: int) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self.num_cached_tokens = num_cached_tokens


def report(cached: int = 1024, found: FoundMisses | None = FOUND) -> CacheReport:
    made, stream = CacheReport(), Begun(7238, cached)
    made.expect(3)
    if found is not None:
        made.take(3, found)
    begun: Any = stream
    made.begin(begun)
    return made


def test_the_header_has_every_reason_and_where_something_changed() -> None:
    found = report()
    assert found.header() == {CACHE_HEADER: "hit=1024 new=304 diverged=16@1030 volatile=5888@1030 tail=6"}
    assert found.details() == {
        "new_tokens": 304,
        "diverged_tokens": 16,
        "volatile_tokens": 5888,
        "tail_tokens": 6,
    }


def test_a_header_that_is_written_before_the_reasons_are_known_has_the_sum() -> None:
    early = report(found=None)
    assert early.header() == {CACHE_HEADER: "hit=1024 missed=6214"}
    assert early.details() == {}
    early.take(3, FOUND)
    assert early.details() == report().details()


def test_what_the_rank_had_cached_counts() -> None:
    assert report(cached=1056).header()[CACHE_HEADER] == "hit=1056 new=304 volatile=5872@1030 tail=6"
    fewer = "hit=1000 new=304 diverged=16@1030 volatile=5888@1030 unknown=24 tail=6"
    assert report(cached=1000).header()[CACHE_HEADER] == fewer


def test_reasons_are_of_the_choice_that_gave_the_first_token() -> None:
    made = report(found=None)
    made.take(2, FOUND)  # of an attempt before that
    assert made.details() == {}
    made.expect(4)  # the answer goes on elsewhere
    made.take(4, FOUND)
    assert made.details() == {}
    made.take(3, FOUND)
    assert made.details()["volatile_tokens"] == 5888


def row(reason: str, tokens: int, place: Any = None, rank: int | None = None) -> dict[str, Any]:
    row = {"model": "m", "tenant": None, "reason": reason, "tokens": tokens, "requests": 1}
    return {**row, "place": place, "rank": rank}


def table(name: str, tokens: dict[str, int], rows: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {"requests": 2, "prompt_tokens": 100, "memory": {"capacity": 9}}
    return {"router": name, "tokens": tokens, "rows": rows, **numbers}


def test_routers_tables_are_added_up_by_place() -> None:
    clock = {"token": 40, "message": 0, "role": "system", "line": 0}
    one = table("a", {"volatile": 30, "lost": 5}, [row("volatile", 30, clock), row("lost", 5, rank=1)])
    other_clock = {**clock, "token": 41}
    rows = [row("volatile", 10, other_clock), row("lost", 50, rank=0), row("lost", 1, rank=1)]
    other = table("b", {"volatile": 10, "lost": 51}, rows)
    answer = misses_answer([one, other], 2)
    assert answer["missed_tokens"] == {"volatile": 40, "lost": 56}
    assert (answer["requests"], answer["prompt_tokens"]) == (4, 200)
    assert [(each["reason"], each["tokens"], each["rank"]) for each in answer["rows"]] == [
        ("lost", 50, 0),
        ("volatile", 40, None),
    ]
    assert answer["rows"][1]["place"] == other_clock
    assert [each["router"] for each in answer["routers"]] == ["a", "b"]


def test_a_limit_is_a_number_of_rows() -> None:
    assert (wanted_rows(None), wanted_rows("1"), wanted_rows("1000")) == (100, 1, 1000)
    for wrong in ("0", "-1", "1001", "x", "", "9" * 30, "٣"):
        with pytest.raises(InvalidRequestError, match="1 to 1000"):
            wanted_rows(wrong)
