"""The answer of SGLang's `GET /v1/loads`: every rank's load, and all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from app import __version__
from app.deployments.messages import Json, RankInfo
from app.errors import InvalidRequestError, NoRankError, shown
from app.events.schema import LoadStat

SECTIONS = ("core", "memory", "spec", "lora", "disagg", "queues", "all")
"""What SGLang's `include` may name; here only the core and the memory's capacity exist."""


def check_loads_query(include: str | None, form: str | None) -> None:
    """Raises `InvalidRequestError` when a parameter has a value that isn't allowed."""
    unknown = [each for each in (include or "core").split(",") if each.strip() not in SECTIONS]
    if unknown:
        allowed = ", ".join(SECTIONS)
        raise InvalidRequestError(f"include = {shown(unknown[0])}; allowed: {allowed}", param="include")
    if form not in (None, "json"):
        raise InvalidRequestError(f"format = {shown(form)}; allowed: 'json'", param="format")


def wanted_rank(dp_rank: str | None, dp_size: int) -> int | None:
    """The only rank that is asked for, None for all.

    Raises:
        InvalidRequestError: it is none of the `dp_size` that there are or may be.
    """
    if dp_rank is None:
        return None
    if not (dp_rank.isascii() and dp_rank.isdecimal() and len(dp_rank) < 10 and int(dp_rank) < dp_size):
        message = f"dp_rank = {shown(dp_rank)}: allowed are 0 to {dp_size - 1}"
        raise InvalidRequestError(message, param="dp_rank")
    return int(dp_rank)


def loads_answer(ranks: Sequence[RankInfo], dp_rank: int | None) -> Json:
    """Loads of the ranks that answer; one that doesn't is left out, rather than shown as idle.

    Args:
        ranks: those that answer.
        dp_rank: the only one that is wanted; None: all.

    Raises:
        NoRankError: the only one that is wanted doesn't answer.
    """
    now = datetime.now(UTC)
    wanted = [info for info in ranks if dp_rank in (None, info.rank)]
    if dp_rank is not None and not wanted:
        raise NoRankError(f"rank {dp_rank} doesn't answer")
    loads = [_load(info.load) | {"timestamp": now.timestamp()} for info in wanted]
    return {
        "timestamp": now.isoformat(),
        "version": __version__,
        "dp_rank_count": len(loads),
        "loads": loads,
        "aggregate": _aggregate(loads),
    }


def _load(load: LoadStat) -> Json:
    """SGLang's names; what isn't measured here, such as its throughput, is left out."""
    usage = load.num_tokens / load.max_total_num_tokens if load.max_total_num_tokens else 0.0
    return {
        "dp_rank": load.dp_rank,
        "num_running_reqs": load.num_running_reqs,
        "num_waiting_reqs": load.num_waiting_reqs,
        "num_total_reqs": load.num_running_reqs + load.num_waiting_reqs,
        "num_waiting_uncached_tokens": load.num_waiting_uncached_tokens,
        "num_used_tokens": load.num_tokens,
        "num_total_tokens": load.num_total_tokens,
        "max_total_num_tokens": load.max_total_num_tokens,
        "token_usage": usage,
        "max_running_requests": load.max_running_requests,
        "total_prefill_uncached_tokens": load.total_prefill_uncached_tokens,
        "total_prefill_busy_us": load.total_prefill_busy_us,
        "memory": {"token_capacity": load.max_total_num_tokens},
    }


def _aggregate(loads: Sequence[Json]) -> Json:
    def total(name: str) -> int:
        return sum(load[name] for load in loads)

    return {
        "total_running_reqs": total("num_running_reqs"),
        "total_waiting_reqs": total("num_waiting_reqs"),
        "total_reqs": total("num_total_reqs"),
        "total_used_tokens": total("num_used_tokens"),
        "total_tokens": total("num_total_tokens"),
        "avg_token_usage": sum(load["token_usage"] for load in loads) / len(loads) if loads else 0.0,
    }
