"""What a client is told of the ranks and the cached tokens of several prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from app.deployments.ingress.misses.cache_report import CACHE_HEADER, CacheReport

RANK_HEADER = "x-dp-rank"


class BatchReport:
    """One request's; it tells of the prompts that have begun."""

    def __init__(self) -> None:
        self._ranks: set[int] = set()
        self._reports: list[CacheReport] = []

    def begin(self, rank: int, report: CacheReport) -> None:
        """The first token of a prompt has come from this rank."""
        self._ranks.add(rank)
        self._reports.append(report)

    def headers(self) -> dict[str, str]:
        """`0, 1`, the ranks, and `hit=1024 missed=16`, the tokens of all prompts."""
        counts = _sum([report.counts() for report in self._reports])
        return {
            RANK_HEADER: ", ".join(map(str, sorted(self._ranks))),
            CACHE_HEADER: " ".join(f"{reason}={tokens}" for reason, tokens in counts.items()),
        }

    def details(self) -> dict[str, int]:
        """Missed tokens by reason, as members of `usage.prompt_tokens_details`."""
        return dict(_sum([report.details() for report in self._reports]))


def _sum(counts: Sequence[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total
