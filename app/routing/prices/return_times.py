"""How many prompts return, and after how long: for new ones and for those that have returned before.

    returns later than t = (prompts that returned / prompts) * (returns after t / returns)

Chats and agents return again and again, documents of a batch never: so the two kinds are kept apart. Times
are counted in quarters of an octave; older counts fade.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from app.routing.rank_view import Floats

NUM_BUCKETS: Final = 96
FIRST_BUCKET_S: Final = 2.0**-6
"""The last of the buckets, four to an octave, begins after 2.5 days."""
MEMORY: Final = 4096
"""Counts fade over about this many prompts."""
FIRST_RETURNS: Final = 64
"""Prompts and returns counted from the start: until it is known better, new prompts are taken to return."""


class ReturnTimes:
    """See the module."""

    def __init__(self) -> None:
        self._prompts = [float(FIRST_RETURNS), float(FIRST_RETURNS)]
        """New ones, and those that were returns."""
        self._returns = [float(FIRST_RETURNS), float(FIRST_RETURNS)]
        """Of each."""
        self._after = np.zeros((2, NUM_BUCKETS))
        """Of those, how many after which time."""

    @property
    def share_of_new(self) -> float:
        """New prompts that return, of all of them."""
        return min(1.0, self._returns[0] / self._prompts[0])

    def add(self, *, is_return: bool) -> None:
        """Count a prompt."""
        self._prompts[is_return] += 1

    def add_return(self, seconds: float, *, was_return: bool) -> None:
        """Count the return, after so long, of a prompt that was itself a return or not."""
        self._returns[was_return] += 1
        self._after[int(was_return), _bucket(seconds)] += 1

    def fade(self, num_prompts: int) -> None:
        """Let older counts weigh less, after so many prompts more."""
        kept = (1 - 1 / MEMORY) ** num_prompts
        self._prompts = [each * kept for each in self._prompts]
        self._returns = [each * kept for each in self._returns]
        self._after *= kept

    def later_than(self, seconds: Floats) -> Floats:
        """The share of prompts that return after more than `seconds`, which may be infinite.

        Returns:
            Shape (2, len(seconds)): of new prompts, of those that were returns.
        """
        totals = self._after.sum(axis=1, keepdims=True) + 1
        tails = np.cumsum(self._after[:, ::-1], axis=1)[:, ::-1] / totals
        shares = np.minimum(1.0, np.array(self._returns) / np.array(self._prompts))
        with np.errstate(divide="ignore"):
            buckets = np.log2(seconds / FIRST_BUCKET_S) * 4
        known = shares[:, None] * tails[:, np.clip(buckets, 0, NUM_BUCKETS - 1).astype(np.int64)]
        result: Floats = np.where(np.isinf(seconds), 0.0, known)
        return result


def _bucket(seconds: float) -> int:
    ratio = max(seconds / FIRST_BUCKET_S, 1.0)
    return min(NUM_BUCKETS - 1, int(np.log2(ratio) * 4))
