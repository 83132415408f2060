"""What a rank says of its load to Ray's controller, from what its engine reports."""

from __future__ import annotations

from app.deployments.autoscaling.policy import RankLoad
from app.events.schema import LoadStat
from app.routing.load.prefill_rate import PrefillRate


class LoadMeter:
    """Turns one engine's reports into shares and seconds.

    Args:
        initial_prefill_tokens_per_s: the prefill rate until one has been measured.
    """

    def __init__(self, initial_prefill_tokens_per_s: float) -> None:
        self._initial = initial_prefill_tokens_per_s
        self._rate = PrefillRate()

    def observe(self, stat: LoadStat) -> RankLoad:
        """The load that `stat` reports; call it with each report, or with some of them, in order."""
        self._rate.observe(stat.total_prefill_uncached_tokens, stat.total_prefill_busy_us)
        num_requests = stat.num_running_reqs + stat.num_waiting_reqs
        return RankLoad(
            num_requests=float(num_requests),
            queue_wait_s=stat.num_waiting_uncached_tokens / (self._rate.tokens_per_s or self._initial),
            usage=max(
                _share(stat.num_total_tokens, stat.max_total_num_tokens),
                _share(num_requests, stat.max_running_requests),
            ),
            prefill_busy_s=stat.total_prefill_busy_us / 1e6,
        )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
