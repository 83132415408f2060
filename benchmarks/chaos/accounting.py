"""What became of every request."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from benchmarks.chaos.answers import Answer

Ended = Literal["ok", "aborted", "refused", "lost_with_ingress", "failed"]
INGRESS_GRACE_S = 2.0
"""For so long after its death an ingress may still be sent requests: its proxy learns of it then."""
EXAMPLES = 5
"""Of each cause of failure."""


@dataclass(frozen=True)
class Result:
    """One request's end.

    Attributes:
        name: what is special about the request.
        ended: `ok`: a whole answer, and the right one where that is known. `aborted`: its client left.
            `refused`: told to try again later. `lost_with_ingress`: its connection broke when an ingress was
            killed. `failed`: anything else.
        cause: why, or when its client left.
        by_ingress: of one that failed: whether its ingress lived: it said so itself, or went on.
        sent_at, ended_at: monotonic.
        first_token_s: of a stream: from sending it to the first event.
        longest_pause_s: of a stream: between two events.
        answer: what came, if it came to its end.
    """

    name: str
    ended: Ended
    cause: str
    by_ingress: bool
    sent_at: float
    ended_at: float
    first_token_s: float | None = None
    longest_pause_s: float = 0.0
    answer: Answer | None = None


def attributed(result: Result, ingress_deaths: Sequence[float]) -> Result:
    """`result`, as one lost with its ingress where that can have been its cause.

    A client isn't told which ingress it has. But an ingress that lives says itself why a request fails; only
    a connection that breaks off, or a proxy's own answer, can be an ingress's death, and only at such a time.
    """
    if result.ended != "failed" or result.by_ingress:
        return result
    since = result.sent_at - INGRESS_GRACE_S
    was_killed = any(since <= death <= result.ended_at for death in ingress_deaths)
    return replace(result, ended="lost_with_ingress") if was_killed else result


@dataclass
class Ledger:
    """Every result.

    Attributes:
        ingress_deaths: when ingresses were killed, monotonic; others add to it.
        started_at: the traffic's beginning, monotonic.
        counts: requests by how they ended.
        causes: of refusals, losses and failures, without the numbers in them.
        examples: some of the failures of each cause.
        longest_pause, longest_first_token, longest_request: seconds, and the request's name.
        num_resumed: requests of which a receipt says that they went on at another rank.
    """

    ingress_deaths: list[float] = field(default_factory=list)
    started_at: float = field(default_factory=time.monotonic)
    counts: Counter[Ended] = field(default_factory=Counter)
    causes: dict[Ended, Counter[str]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    longest_pause: tuple[float, str] = (0.0, "")
    longest_first_token: tuple[float, str] = (0.0, "")
    longest_request: tuple[float, str] = (0.0, "")
    num_resumed: int = 0

    def take(self, result: Result) -> None:
        """Count one."""
        result = attributed(result, self.ingress_deaths)
        self.counts[result.ended] += 1
        self.longest_pause = max(self.longest_pause, (result.longest_pause_s, result.name))
        self.longest_first_token = max(self.longest_first_token, (result.first_token_s or 0.0, result.name))
        self.longest_request = max(self.longest_request, (result.ended_at - result.sent_at, result.name))
        if result.ended in ("ok", "aborted"):
            return
        cause = without_numbers(result.cause)
        self.causes.setdefault(result.ended, Counter())[cause] += 1
        if result.ended == "failed" and len(examples := self.examples.setdefault(cause, [])) < EXAMPLES:
            examples.append(
                f"{result.name}, sent at {result.sent_at - self.started_at:.1f} s: {result.cause}"
            )

    @property
    def num_requests(self) -> int:
        """All of them."""
        return self.counts.total()

    def violations(self) -> list[str]:
        """A line for each cause of failure, with how often it was there and an example."""
        return [
            f"{count} requests failed: {cause} (as {self.examples[cause][0]})"
            for cause, count in self.causes.get("failed", Counter()).items()
        ]


def without_numbers(cause: str) -> str:
    """`cause` with every number as `#`, and replicas' ids too, so that equal causes are equal."""
    return re.sub(r"[0-9]+", "#", re.sub(r"[0-9a-f]{16,}|(?<=replica )\w+", "#", cause))
