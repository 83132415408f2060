"""The answer of `/health`, from what a router knows of the ranks."""

from __future__ import annotations

from collections.abc import Sequence

from app.deployments.messages import Json


def health_answer(ranks: Sequence[Json], dp_size: int) -> tuple[Json, int]:
    """Which ranks can take requests, and the HTTP status: 503 when none can.

    Args:
        ranks: a router's view of those that are there.
        dp_size: how many there should be.
    """
    unavailable: dict[int, str | None] = dict.fromkeys(range(dp_size), "not alive")
    unavailable |= {each["rank"]: each["unavailable"] for each in ranks}
    missing = [{"rank": rank, "reason": why} for rank, why in sorted(unavailable.items()) if why is not None]
    num_available = len(unavailable) - len(missing)
    status = "ok" if num_available else "no rank can take requests"
    return {"status": status, "ranks": num_available, "missing": missing}, 200 if num_available else 503
