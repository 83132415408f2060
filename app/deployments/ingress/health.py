"""The answer of `/health`, from what a router knows of the ranks."""

from __future__ import annotations

from collections.abc import Sequence

from app.deployments.messages import Json

ON_DEMAND = "no rank runs; a request starts one and waits for it"
"""The state of a deployment that may have no rank (`autoscaling.min_ranks: 0`), while it has none."""


def health_answer(ranks: Sequence[Json], dp_size: int) -> tuple[Json, int]:
    """Which ranks can take requests, and the HTTP status: 503 when none can.

    Args:
        ranks: a router's view of those that are there.
        dp_size: how many there should be at least; with 0, a request may be what starts the first one.
    """
    unavailable: dict[int, str | None] = dict.fromkeys(range(dp_size), "not alive")
    unavailable |= {each["rank"]: each["unavailable"] for each in ranks}
    missing = [{"rank": rank, "reason": why} for rank, why in sorted(unavailable.items()) if why is not None]
    if not unavailable:
        return {"status": f"ok: {ON_DEMAND}", "ranks": 0, "missing": []}, 200
    num_available = len(unavailable) - len(missing)
    status = "ok" if num_available else "no rank can take requests"
    return {"status": status, "ranks": num_available, "missing": missing}, 200 if num_available else 503
