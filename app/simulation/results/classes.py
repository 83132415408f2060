"""Classes of requests, and the figures of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from app.routing.rank_sets import Integers
from app.routing.rank_view import Floats
from app.simulation.traces.request import FIRST_TURN, LATER_TURN, SimulatedRequest

NO_SESSION: Final = "no session"


class RequestClasses:
    """Says which class each request belongs to; sees them in the order of arrival.

    That is the class that the trace names; else whether the request is the first one of its session or not;
    else `NO_SESSION`.
    """

    def __init__(self) -> None:
        self._sessions: set[str] = set()

    def of(self, request: SimulatedRequest) -> str:
        """The next request's class."""
        is_known = request.session_id in self._sessions
        if request.session_id is not None:
            self._sessions.add(request.session_id)
        if request.request_class is not None:
            return request.request_class
        if request.session_id is None:
            return NO_SESSION
        return LATER_TURN if is_known else FIRST_TURN


@dataclass(frozen=True)
class ClassFigures:
    """One class in numbers. Percentiles interpolate linearly, as numpy's do.

    Attributes:
        num_requests: of the class.
        hit_rate: their prompt tokens that came from a cache, of all their prompt tokens.
        ttft_mean_s, ttft_p50_s, ttft_p90_s, ttft_p99_s: time to first token in seconds.
    """

    num_requests: int
    hit_rate: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float


def figures_by_class(
    classes: Sequence[str], prompt_tokens: Integers, cached_tokens: Integers, ttfts_s: Floats
) -> Mapping[str, ClassFigures]:
    """The figures of each class, in the order of their first requests.

    Args:
        classes: of each request.
        prompt_tokens, cached_tokens, ttfts_s: the same requests'.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(classes))}
    column = np.array([numbers[name] for name in classes])
    figures = {}
    for name, number in numbers.items():
        own = column == number
        p50, p90, p99 = np.percentile(ttfts_s[own], [50, 90, 99])
        figures[name] = ClassFigures(
            num_requests=int(own.sum()),
            hit_rate=float(cached_tokens[own].sum() / prompt_tokens[own].sum()),
            ttft_mean_s=float(ttfts_s[own].mean()),
            ttft_p50_s=float(p50),
            ttft_p90_s=float(p90),
            ttft_p99_s=float(p99),
        )
    return figures
