"""How many tokens were missed for each reason, and where: the worst places first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from app.routing.misses.miss import PLACED, REASONS, Change, Json, Miss, Reason

MAX_ROWS = 1_000
"""Of the table; the smallest of more are added up, by tenant and reason."""
Place = tuple[str | None, Reason, Any]
"""Tenant, reason and where: a message's line, a block, or a rank; None for everywhere else."""


@dataclass(slots=True)
class Row:
    """What was missed at one place.

    Attributes:
        tokens: how many.
        requests: of how many requests.
        last_request: the number of the last of them.
        rank: the last one's.
        change: what changed, in the last request that has a place.
    """

    tokens: int = 0
    requests: int = 0
    last_request: int = 0
    rank: int | None = None
    change: Change | None = None


class MissTally:
    """Counters and the table, since a router's start.

    Attributes:
        tokens: missed tokens by reason, what `kvbeacon_missed_tokens_total{reason}` is.
        requests: requests that were counted.
        prompt_tokens: of these requests.
    """

    def __init__(self) -> None:
        self.tokens: Counter[Reason] = Counter(dict.fromkeys(REASONS, 0))
        self.requests = 0
        self.prompt_tokens = 0
        self._rows: dict[Place, Row] = {}

    def add(self, tenant: str | None, num_tokens: int, misses: Sequence[Miss], change: Change | None) -> None:
        """Count one request's prompt and its misses."""
        self.requests += 1
        self.prompt_tokens += num_tokens
        for miss in misses:
            self.tokens[miss.reason] += miss.num_tokens
            place = (tenant, miss.reason, _where(miss, change))
            row = self._rows.get(place)
            if row is None:
                row = self._rows[place] = Row()
            row.tokens += miss.num_tokens
            if row.last_request != self.requests:
                row.last_request = self.requests
                row.requests += 1
                row.rank = miss.rank
                if miss.reason in PLACED and change is not None:
                    row.change = change
        if len(self._rows) > 2 * MAX_ROWS:
            self._fold()

    def table(self, model: str) -> list[Json]:
        """A row for each place, most tokens first."""
        rows = sorted(self._rows.items(), key=lambda item: -item[1].tokens)
        return [
            {
                "model": model,
                "tenant": tenant,
                "reason": reason,
                "tokens": row.tokens,
                "requests": row.requests,
                **_shown(row),
            }
            for (tenant, reason, _), row in rows[:MAX_ROWS]
        ]

    def _fold(self) -> None:
        """Add up the smallest rows."""
        rows = sorted(self._rows.items(), key=lambda item: -item[1].tokens)
        self._rows = dict(rows[: MAX_ROWS // 2])
        for (tenant, reason, _), row in rows[MAX_ROWS // 2 :]:
            rest = self._rows.setdefault((tenant, reason, None), Row())
            rest.tokens += row.tokens
            rest.requests += row.requests


def _where(miss: Miss, change: Change | None) -> Any:
    if miss.reason not in PLACED or change is None:
        return miss.rank
    return change.token if change.line is None else (change.message, change.line)


def _shown(row: Row) -> Json:
    place: Json = msgspec.to_builtins(row.change) if row.change is not None else {}
    return {"place": place or None, "rank": row.rank}
