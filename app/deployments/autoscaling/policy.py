"""How many ranks a load needs, as Ray Serve's controller asks it ten times a second.

    rank: RankLoad.as_stats ──every few seconds──▶ controller: RankPolicy ─▶ desired_ranks ─▶ delays, bounds

Ray pickles this module by value and runs it in its controller, where this package needn't be installed. So
it holds everything that the policy needs and imports nothing else of ours. The policy never raises: that
would stop the whole application's scaling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

HEADROOM = 0.8
"""Ranks go only if those that stay would reach no more than this share of a target. Without a gap between
both limits the number would go up and down all the time."""

MAX_PREFILL_BUSY = 0.8
"""Share of its time that a rank which stays may come to spend on prompts when another goes. A queue shows too
much work only once there is too much: this shows that there is nearly too much."""


class Sample(Protocol):
    """One value that a replica recorded; Ray's `TimeStampedValue`."""

    timestamp: float
    value: float


class Context(Protocol):
    """What `RankPolicy` reads of Ray's `AutoscalingContext`. `raw_metrics`: name → replica → oldest first."""

    target_num_replicas: int
    running_replicas: Sequence[Any]

    @property
    def total_queued_requests(self) -> float: ...
    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Sequence[Sample]]] | None: ...


@dataclass(frozen=True)
class RankLoad:
    """What one rank says of its load.

    Attributes:
        num_requests: requests that run or wait there.
        queue_wait_s: seconds of prefill that its waiting requests need.
        usage: of its KV blocks, or of the places in its batch, the larger share that requests take or wait
            for. Cached blocks that no request holds are free.
        prefill_busy_s: seconds that it has spent on prompts since its start; or, where that is said, the
            share of its time.
    """

    num_requests: float = 0.0
    queue_wait_s: float = 0.0
    usage: float = 0.0
    prefill_busy_s: float = 0.0

    def as_stats(self) -> dict[str, float]:
        """What a replica's `record_autoscaling_stats` returns."""
        return asdict(self)


STATS = tuple(field.name for field in fields(RankLoad))


@dataclass(frozen=True)
class Targets:
    """What a rank's load may come to; see `RankAutoscalingConfig`."""

    queue_wait_s: float
    usage: float


def desired_ranks(
    loads: Iterable[RankLoad], targets: Targets, *, now: int, num_queued: float = 0.0, complete: bool = True
) -> int:
    """How many ranks the load needs, without bounds.

        for the queue     Σ queue_wait_s ÷ target_queue_wait_s
        for memory        Σ usage ÷ target_usage
        for computing     Σ prefill_busy_s ÷ MAX_PREFILL_BUSY

    The largest of these, rounded up, is the number that the load needs; sums don't depend on how it is
    spread. If the first two need more ranks than there are, the answer is that. Ranks go only where all three
    leave `HEADROOM`, and at most half of them at a time. While there is any request, there is at least one.

    Source: a metric's ratio to its target, and the gap in which nothing changes, are those of Kubernetes'
    horizontal pod autoscaler. By the number of requests alone, which is Ray's default, a rank with 50 short
    answers would look as busy as one with 50 long prompts.

    Args:
        loads: of the ranks that have said it; `prefill_busy_s` as the share of their time.
        targets: what a rank's load may come to.
        now: how many ranks there are, or are being started.
        num_queued: requests that wait for any rank.
        complete: whether all ranks have said their load; if not, none goes.
    """
    known = list(loads)
    least = int(num_queued > 0 or any(load.num_requests > 0 for load in known))
    wait = sum(load.queue_wait_s for load in known) / targets.queue_wait_s
    usage = sum(load.usage for load in known) / targets.usage
    busy = sum(load.prefill_busy_s for load in known) / MAX_PREFILL_BUSY
    more = max(least, math.ceil(max(wait, usage)))
    if more > now or not complete:
        return max(more, now)
    enough = max(least, math.ceil(max(wait, usage, busy) / HEADROOM))
    at_least_left = now - max(1, now // 2)
    return min(now, max(enough, at_least_left))


class RankPolicy:
    """Ray Serve's autoscaling policy of the ranks: `desired_ranks` of what they have reported.

    Ray applies the delays and the bounds to what it returns, and starts the first rank by itself.

    Args:
        target_queue_wait_s: see `RankAutoscalingConfig`.
        target_usage: the same.
    """

    def __init__(self, target_queue_wait_s: float, target_usage: float) -> None:
        self._targets = Targets(target_queue_wait_s, target_usage)

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """The number of ranks, and no state of its own to keep."""
        metrics = context.raw_metrics or {}
        loads = [load for each in context.running_replicas if (load := _load_of(each, metrics)) is not None]
        desired = desired_ranks(
            loads,
            self._targets,
            now=context.target_num_replicas,
            num_queued=context.total_queued_requests,
            complete=len(loads) == len(context.running_replicas),
        )
        return desired, {}


def _load_of(replica: Any, metrics: Mapping[str, Mapping[Any, Sequence[Sample]]]) -> RankLoad | None:
    """What this replica has reported; None if it has reported nothing that can be used."""
    series = {name: metrics.get(name, {}).get(replica) or () for name in STATS}
    latest = {name: samples[-1].value for name, samples in series.items() if samples}
    if len(latest) < len(STATS) or not all(map(_is_usable, latest.values())):
        return None
    return replace(RankLoad(**latest), prefill_busy_s=_rate(series["prefill_busy_s"]))


def _is_usable(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _rate(counter: Sequence[Sample]) -> float:
    """Seconds per second over all samples, at most 1; 0 where there is but one."""
    first, last = counter[0], counter[-1]
    seconds = last.timestamp - first.timestamp
    if seconds <= 0 or not _is_usable(first.value):
        return 0.0
    return min(1.0, max(0.0, last.value - first.value) / seconds)
