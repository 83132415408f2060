"""Generates requests in groups, each with a prefix of its own: Poisson arrivals, popularity by Zipf's law."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate

from pydantic import Field

from app.settings.base import PositiveFloat, PositiveInt, Settings
from app.simulation.traces.request import SimulatedRequest


class SharedPrefixes(Settings):
    """Groups of requests that share their first blocks; the rest of each prompt is its own."""

    num_requests: PositiveInt = Field(10_000, description="Requests in all.")
    requests_per_s: PositiveFloat = Field(30.0, description="Mean rate of arrival; gaps are exponential.")
    num_groups: PositiveInt = Field(200, description="Prefixes.")
    skew: float = Field(1.0, ge=0, description="The k-th prefix is asked for as often as 1 / k^skew.")
    prefix_blocks: PositiveInt = Field(8, description="Blocks of a prefix.")
    own_blocks: PositiveInt = Field(2, description="Blocks of the rest, on average; at least 1, geometric.")
    output_tokens: PositiveInt = Field(200, description="Tokens of an answer.")
    block_size: PositiveInt = Field(512, description="Tokens of a block.")
    seed: int = Field(0, description="Of groups, lengths and gaps.")

    def requests(self) -> Iterator[SimulatedRequest]:
        """The requests in the order of arrival, made one at a time; the same at every call."""
        rng = random.Random(self.seed)
        weights = list(accumulate(1 / (k + 1) ** self.skew for k in range(self.num_groups)))
        next_id, now = self.num_groups * self.prefix_blocks, 0.0
        for _ in range(self.num_requests):
            now += rng.expovariate(self.requests_per_s)
            group = rng.choices(range(self.num_groups), cum_weights=weights)[0]
            own = self._num_own_blocks(rng)
            prefix = range(group * self.prefix_blocks, (group + 1) * self.prefix_blocks)
            ids = (*prefix, *(each % 2**32 for each in range(next_id, next_id + own)))
            next_id += own
            yield SimulatedRequest(now, len(ids) * self.block_size, self.output_tokens, ids)

    def _num_own_blocks(self, rng: random.Random) -> int:
        number = 1
        while rng.random() >= 1 / self.own_blocks:
            number += 1
        return number
