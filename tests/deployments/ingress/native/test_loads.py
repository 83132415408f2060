"""SGLang's `/v1/loads`, made of what ranks say of themselves."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from app.deployments.ingress.native.loads import check_loads_query, loads_answer, wanted_rank
from app.errors import InvalidRequestError, NoRankError
from app.events.schema import LoadStat
from tests.support.rank_info import rank_info

RANKS = [
    replace(rank_info(0), load=LoadStat(1, 2, 30, 400, 0, 6, 70, 8, 9, 10)),
    replace(rank_info(1), load=LoadStat(0, 1, 10, 400, 1, 5, 20, 8, 0, 0)),
]


def test_every_ranks_load_and_all_together() -> None:
    answer = loads_answer(RANKS, None)
    assert datetime.fromisoformat(answer["timestamp"]).tzinfo is not None
    assert answer["dp_rank_count"] == 2
    first, second = answer["loads"]
    assert abs(first.pop("timestamp") - datetime.fromisoformat(answer["timestamp"]).timestamp()) < 1
    assert first == {
        "dp_rank": 0,
        "num_running_reqs": 1,
        "num_waiting_reqs": 2,
        "num_total_reqs": 3,
        "num_waiting_uncached_tokens": 6,
        "num_used_tokens": 30,
        "num_total_tokens": 70,
        "max_total_num_tokens": 400,
        "token_usage": 0.075,
        "max_running_requests": 8,
        "total_prefill_uncached_tokens": 9,
        "total_prefill_busy_us": 10,
        "memory": {"token_capacity": 400},
    }
    assert second["dp_rank"] == 1
    assert answer["aggregate"] == {
        "total_running_reqs": 1,
        "total_waiting_reqs": 3,
        "total_reqs": 4,
        "total_used_tokens": 40,
        "total_tokens": 90,
        "avg_token_usage": pytest.approx(0.05),
    }


def test_one_rank() -> None:
    answer = loads_answer(RANKS, 1)
    assert [load["dp_rank"] for load in answer["loads"]] == [1]
    assert answer["aggregate"]["total_waiting_reqs"] == 1
    with pytest.raises(NoRankError, match="rank 2 doesn't answer"):
        loads_answer(RANKS, 2)


def test_no_rank_is_no_load() -> None:
    answer = loads_answer([], None)
    assert (answer["loads"], answer["aggregate"]["avg_token_usage"]) == ([], 0)


def test_the_query() -> None:
    check_loads_query(None, None)
    check_loads_query("core, queues", "json")
    assert wanted_rank(None, 2) is None
    assert wanted_rank("1", 2) == 1


@pytest.mark.parametrize(
    ("dp_rank", "include", "form", "param"),
    [
        ("2", None, None, "dp_rank"),
        ("-1", None, None, "dp_rank"),
        ("٣", None, None, "dp_rank"),
        ("", None, None, "dp_rank"),
        (None, "cores", None, "include"),
        (None, None, "prometheus", "format"),
    ],
)
def test_a_wrong_query(dp_rank: str | None, include: str | None, form: str | None, param: str) -> None:
    def check() -> None:
        check_loads_query(include, form)
        wanted_rank(dp_rank, 2)

    with pytest.raises(InvalidRequestError) as caught:
        check()
    assert caught.value.param == param
