"""What a router decided lately, what became of it, and how good its decisions are.

    choose ──record──▶ DecisionLog ◀──record_outcome── outcomes, reported by the ingress later, in batches
                       last N requests, and counters since the router's start

Recording is on every request's path, so it only keeps references; `explanation` makes words of them when a
client asks.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from app.events.following.sync_status import Trust
from app.routing.decisions.decision import Decision

LostResult = Literal["died", "silent", "broke_off", "moved"]
"""How an attempt ends that leaves the rest of its request to another rank: the rank was gone or could serve
nothing; it sent nothing for too long; the call broke off, though the rank is there; it was taken from it."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request on the rank that it was sent to.

    Attributes:
        request_id: the request's.
        rank: where it was sent.
        result: "answering" (its first token is there), "finished", "aborted" (the client left), a
            `LostResult`, or the code of the error that the rank ended it with ("failed" if that has none).
        ttft_s: seconds from the call to the rank until its first token; None before it.
        choice_seq: the number of the choice that sent it there.
        cached_tokens: tokens that the rank had cached; None before its first token.
    """

    request_id: str
    rank: int
    result: str
    ttft_s: float | None = None
    choice_seq: int = 0
    cached_tokens: int | None = None


@dataclass(slots=True)
class Record:
    """One decision and its last outcome.

    Attributes:
        decision: what was decided.
        decided_at: when, Unix time in seconds.
        result: as in `Outcome`; "sent" before the first outcome.
        ttft_s: as in `Outcome`.
    """

    decision: Decision
    decided_at: float
    result: str = "sent"
    ttft_s: float | None = None


@dataclass
class RoutingStats:
    """Counters since a router's start.

    Attributes:
        decisions: by policy's name and by the trust in the chosen rank's cache.
        regret_tokens: prompt tokens that the rank with the most of them in its cache held and the chosen one
            didn't, over all decisions: what it cost in cache hits to weigh load too.
        regret_decisions: decisions that missed some.
        resumed: decisions for requests that another rank had begun to answer.
        ttft_errors: first tokens whose time is known.
        ttft_error_sum_s: sum of actual minus predicted time to first token: positive when too optimistic.
        ttft_error_abs_sum_s: the same without signs.
    """

    decisions: Counter[tuple[str, Trust]] = field(default_factory=Counter)
    regret_tokens: int = 0
    regret_decisions: int = 0
    resumed: int = 0
    ttft_errors: int = 0
    ttft_error_sum_s: float = 0.0
    ttft_error_abs_sum_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For `GET /router/stats`; means are null before the first first token."""
        by_policy: dict[str, dict[str, int]] = {}
        for (policy, trust), count in self.decisions.items():
            by_policy.setdefault(policy, {})[trust] = count
        count = self.ttft_errors
        return {
            "decisions": by_policy,
            "resumed": self.resumed,
            "regret_tokens": {"sum": self.regret_tokens, "count": self.regret_decisions},
            "ttft_prediction_error_s": {
                "mean": self.ttft_error_sum_s / count if count else None,
                "mean_absolute": self.ttft_error_abs_sum_s / count if count else None,
                "count": count,
            },
        }


class DecisionLog:
    """The decisions for the last `capacity` requests, and counters over all of them.

    Attributes:
        stats: the counters.
    """

    def __init__(self, capacity: int) -> None:
        self.stats = RoutingStats()
        self._capacity = capacity
        self._records: OrderedDict[str, list[Record]] = OrderedDict()
        """By request, oldest first; each one's records in the order of its attempts."""

    def record(self, request_id: str, decision: Decision) -> None:
        """Keep a decision, in place of the oldest request's when there are too many."""
        self._records.setdefault(request_id, []).append(Record(decision, time.time()))
        if len(self._records) > self._capacity:
            self._records.popitem(last=False)
        stats = self.stats
        stats.decisions[decision.policy, decision.trust] += 1
        stats.resumed += decision.num_output_tokens > 0
        missed = decision.regret_tokens
        if missed:
            stats.regret_tokens += missed
            stats.regret_decisions += 1

    def record_outcome(self, outcome: Outcome) -> None:
        """Keep what became of a request, if its decision is known here."""
        records = self.of(outcome.request_id)
        record = next((each for each in records if each.decision.choice_seq == outcome.choice_seq), None)
        if record is None:
            return
        record.result = outcome.result
        if outcome.ttft_s is not None and record.ttft_s is None:
            record.ttft_s = outcome.ttft_s
            error = outcome.ttft_s - record.decision.predicted_ttft_s
            self.stats.ttft_errors += 1
            self.stats.ttft_error_sum_s += error
            self.stats.ttft_error_abs_sum_s += abs(error)

    def of(self, request_id: str) -> Sequence[Record]:
        """A request's records in the order of its attempts; none when it isn't, or no longer, known."""
        return self._records.get(request_id, ())
