"""`/health` says which ranks can take requests, and of the others why not."""

from __future__ import annotations

from typing import Any

import pytest

from app.deployments.ingress.health import ON_DEMAND, health_answer

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
    answer, status = health_answer(ranks, dp_size=2)
    assert (answer["ranks"], answer["missing"]) == (num_available, missing)
    assert (answer["status"], status) == (
        ("ok", 200) if num_available else ("no rank can take requests", 503)
    )


def test_where_there_may_be_no_rank_having_none_is_well() -> None:
    assert health_answer([], dp_size=0) == ({"status": f"ok: {ON_DEMAND}", "ranks": 0, "missing": []}, 200)
    answer, status = health_answer([DOWN | {"rank": 0}], dp_size=0)
    assert (answer["status"], status) == ("no rank can take requests", 503)
    assert health_answer([UP | {"rank": 0}], dp_size=0) == ({"status": "ok", "ranks": 1, "missing": []}, 200)
