"""How ranks compare: the lowest by several keys, and those that are overloaded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from app.routing.rank_sets import Integers
from app.routing.rank_view import ROWS, Floats, RankViews

BALANCE_ABS_THRESHOLD = 32
BALANCE_REL_THRESHOLD = 1.1
"""What SGLang's `cache_aware` calls imbalance, with its defaults: see `overloaded`."""


def all_positions(views: RankViews) -> Integers:
    """The positions of all ranks."""
    return np.arange(len(views))


def lowest(positions: Integers, first: Floats, *then: Floats) -> int:
    """Of `positions`, the one with the lowest first key; among equals the lowest next; else the first."""
    *keys, last = first, *then
    for key in keys:
        values = key[positions]
        positions = positions[values == values.item(values.argmin())]
    return positions.item(last[positions].argmin())


def overloaded(views: RankViews) -> npt.NDArray[np.bool_]:
    """Which ranks have both over 32 requests more than the least loaded one, and over 1.1 times as many.

    So the least loaded rank never is.

    Source: SGLang's router, policy `cache_aware`, `balance_abs_threshold` and `balance_rel_threshold`
    (sgl-model-gateway/src/policies, defaults of `CacheAwareConfig`). It takes the least loaded rank as soon
    as the most loaded one has so much; here only ranks that have are passed over, so that one queue doesn't
    cost the other ranks' prefixes.
    """
    requests: Floats = views.counts[ROWS.num_requests]
    least = float(requests.min())
    return (requests - least > BALANCE_ABS_THRESHOLD) & (requests > BALANCE_REL_THRESHOLD * least)
