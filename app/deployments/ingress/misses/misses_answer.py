"""The answer of `/router/misses`, put together from those of all routers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

from app.deployments.messages import Json
from app.errors import InvalidRequestError, shown

MAX_ROWS = 1_000
DEFAULT_ROWS = 100


def wanted_rows(given: str | None) -> int:
    """How many rows a client wants. Raises `InvalidRequestError` for what is no number of rows."""
    if given is None:
        return DEFAULT_ROWS
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= MAX_ROWS):
        message = f"limit = {shown(given)}; allowed: 1 to {MAX_ROWS}"
        raise InvalidRequestError(message, param="limit")
    return int(given)


def misses_answer(routers: Sequence[Json], limit: int) -> Json:
    """All routers' misses together.

    Args:
        routers: their tables.
        limit: rows at most, those with most tokens.
    """
    tokens: Counter[str] = Counter()
    rows: dict[tuple[object, ...], Json] = {}
    for router in routers:
        tokens.update(router["tokens"])
        for row in router["rows"]:
            place = row["place"] or {}
            where = (place.get("message"), place["line"]) if "line" in place else place.get("token")
            key = (row["model"], row["tenant"], row["reason"], where, row["rank"] if not place else None)
            if key in rows:
                row = {**row, **{name: rows[key][name] + row[name] for name in ("tokens", "requests")}}
            rows[key] = row
    return {
        "missed_tokens": dict(tokens),
        "prompt_tokens": sum(router["prompt_tokens"] for router in routers),
        "requests": sum(router["requests"] for router in routers),
        "rows": sorted(rows.values(), key=itemgetter("tokens"), reverse=True)[:limit],
        "routers": [{"router": each["router"], "memory": each["memory"]} for each in routers],
    }
