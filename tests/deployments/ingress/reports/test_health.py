"""`/health` says which ranks can take requests, and of the others why not."""

from __future__ import annotations

from typing import Any

import pytest

from app.deployments.ingress.reports.health import ON_DEMAND, health_answer

UP: dict[str, Any] = {"unavailable": None}
DOWN: dict[str, Any] = {"unavailable": "worker down"}
NO_REPLICA = {"rank": 1, "reason": "not alive"}


@pytest.mark.parametrize(
    ("ranks", "num_available", "missing"),
    [
        ([UP | {"rank": 0}, UP | {"rank": 1}], 2, []),
        ([UP | {"rank": 0}], 1, [NO_REPLICA]),
        ([DOWN | {"rank": 0}, UP | {"rank": 1}], 1, [{"rank": 0, "reason": "worker down"}]),
        ([DOWN | {"rank": 0}], 0, [{"rank": 0, "reason": "worker down"}, NO_REPLICA]),
        ([], 0, [{"rank": 0, "reason": "not alive"}, NO_REPLICA]),
    ],
)
def test_every_rank_is_counted_or_named(
    ranks: list[dict[str, Any]], num_available: int, missing: list[dict[str, Any]]
) -> None:
    answer, status = health_answer([{"router": "a", "ranks": ranks}], dp_size=2)
    assert answer["routers"] == [{"router": "a", "ranks": num_available, "missing": missing}]
    assert (answer["router"], answer["ranks"], answer["missing"]) == ("a", num_available, missing)
    assert (answer["status"], status) == (
        ("ok", 200) if num_available else ("no rank can take requests", 503)
    )


def test_one_router_that_knows_a_rank_is_enough() -> None:
    views: list[dict[str, Any]] = [
        {"router": "started just now", "ranks": []},
        {"router": "knows both", "ranks": [UP | {"rank": 0}, UP | {"rank": 1}]},
        {"router": "cut off from one", "ranks": [UP | {"rank": 1}]},
    ]
    answer, status = health_answer(views, dp_size=2)
    assert (status, answer["status"], answer["ranks"], answer["missing"]) == (200, "ok", 2, [])
    assert answer["router"] == "knows both"
    assert [(each["router"], each["ranks"]) for each in answer["routers"]] == [
        ("started just now", 0),
        ("knows both", 2),
        ("cut off from one", 1),
    ]


def test_where_there_may_be_no_rank_having_none_is_well() -> None:
    answer, status = health_answer([{"router": "r", "ranks": []}], dp_size=0)
    assert (answer["status"], answer["ranks"], status) == (f"ok: {ON_DEMAND}", 0, 200)
    answer, status = health_answer([{"router": "r", "ranks": [DOWN | {"rank": 0}]}], dp_size=0)
    assert (answer["status"], status) == ("no rank can take requests", 503)
    answer, status = health_answer([{"router": "r", "ranks": [UP | {"rank": 0}]}], dp_size=0)
    assert (answer["status"], answer["ranks"], status) == ("ok", 1, 200)
