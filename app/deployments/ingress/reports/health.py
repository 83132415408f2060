"""The answer of `/health`, from what the routers know of the ranks."""

from __future__ import annotations

from collections.abc import Sequence

from app.deployments.messages import Json

ON_DEMAND = "no rank runs; a request starts one and waits for it"
"""The state of a deployment that may have no rank (`autoscaling.min_ranks: 0`), while it has none."""


def health_answer(views: Sequence[Json], dp_size: int) -> tuple[Json, int]:
    """Which ranks can take requests, and the HTTP status: 503 when none can for any router.

    Routers may differ: one has just started, another is cut off from a rank. The answer is that of the router
    that knows most ranks which can take requests, and the others are under `routers`.

    Args:
        views: those of the routers that answered, at least one.
        dp_size: how many ranks there should be at least; with 0, a request may be what starts the first one.
    """
    routers = [_of_router(view, dp_size) for view in views]
    best = max(routers, key=lambda each: each["ranks"])
    is_well = bool(best["ranks"]) or not any(each["missing"] for each in routers)
    status = "no rank can take requests"
    if is_well:
        status = "ok" if best["ranks"] else f"ok: {ON_DEMAND}"
    return {"status": status, **best, "routers": routers}, 200 if is_well else 503


def _of_router(view: Json, dp_size: int) -> Json:
    unavailable: dict[int, str | None] = dict.fromkeys(range(dp_size), "not alive")
    unavailable |= {each["rank"]: each["unavailable"] for each in view["ranks"]}
    missing = [{"rank": rank, "reason": why} for rank, why in sorted(unavailable.items()) if why is not None]
    return {"ranks": len(unavailable) - len(missing), "missing": missing, "router": view["router"]}
