"""How many ranks a trace needs for a 99th percentile of the time to first token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.simulation.config import ClusterConfig
from app.simulation.results.outcome import Figures
from app.simulation.results.report import WhatIf
from app.simulation.simulator import simulate
from app.simulation.traces.request import SimulatedRequest


def find_ranks(
    config: ClusterConfig,
    trace: Sequence[SimulatedRequest],
    policy: str,
    p99_s: float,
    max_ranks: int,
    on_try: Callable[[int], object] = lambda ranks: None,
) -> WhatIf:
    """The least number of ranks whose p99 is at most `p99_s`, found by doubling and then bisection.

    That more ranks aren't slower is taken for granted; near the answer it may be off by chance.

    Args:
        config: the ranks; their number in it doesn't matter.
        trace: requests in the order of arrival.
        policy: the policy's name.
        p99_s: the wanted 99th percentile of the time to first token in seconds.
        max_ranks: no more than these are tried.
        on_try: called with each number before it is simulated.
    """
    tried: dict[int, Figures] = {}

    def is_enough(ranks: int) -> bool:
        on_try(ranks)
        tried[ranks] = simulate(config.model_copy(update={"ranks": ranks}), trace, policy).figures()
        return tried[ranks].ttft_p99_s <= p99_s

    too_few, ranks = 0, 1
    while not is_enough(ranks):
        if ranks == max_ranks:
            return WhatIf(dict(sorted(tried.items())), p99_s, None)
        too_few, ranks = ranks, min(2 * ranks, max_ranks)
    while ranks - too_few > 1:
        middle = (too_few + ranks) // 2
        if is_enough(middle):
            ranks = middle
        else:
            too_few = middle
    return WhatIf(dict(sorted(tried.items())), p99_s, ranks)
