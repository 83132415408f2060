"""What the simulator needs of a rank, and the blocks that ranks keep.

A rank's cache is the engine's own `PrefixCache` with blocks of one token, where a block's name in the trace
stands for all of its tokens: the same matching, eviction, digests and events, at the price of hashing one
number per block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from app.engine.cache.prefix_cache import BlockTable, PrefixCache
from app.errors import ConfigError
from app.events.schema import CacheEvent, LoadStat
from app.hashing import ROOT
from app.simulation.config import RankConfig
from app.simulation.traces.request import SimulatedRequest

OnFirstToken = Callable[[int, float, int], None]
"""(the request's position in the trace, the moment in seconds, prompt tokens that came from the cache)"""

TOKENS_PER_BLOCK: Final = 1
"""Of the cache, not of the model."""


class Rank(Protocol):
    """One simulated rank. `now`, in seconds, never goes back from call to call."""

    def arrive(self, position: int, request: SimulatedRequest, digests: Sequence[bytes], now: float) -> None:
        """Take a request; its blocks' digests are given, as the router has computed them already."""

    def advance(self, now: float) -> None:
        """Do what is to be done up to `now`."""

    @property
    def next_change(self) -> float:
        """When there will be something to do, if nothing arrives; infinite while there is nothing."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is here, as of the last call."""

    def load(self, now: float) -> LoadStat:
        """What the rank says of itself."""

    def drain_events(self) -> list[CacheEvent]:
        """What has changed in the cache since the last call."""


def new_cache(config: RankConfig) -> PrefixCache:
    """An empty cache."""
    return PrefixCache(config.num_blocks, TOKENS_PER_BLOCK, config.eviction)


def new_table(digests: Sequence[bytes]) -> BlockTable:
    """A prompt's blocks, none of them held yet."""
    return BlockTable(ROOT, digests=list(digests))


def num_reusable_blocks(request: SimulatedRequest, config: RankConfig) -> int:
    """Blocks that may come from the cache: the last token is always computed."""
    return (request.num_tokens - 1) // config.block_size


def check_fits(num_blocks: int, position: int, config: RankConfig) -> None:
    """Raise ConfigError for a request that no rank could ever hold."""
    if num_blocks > config.num_blocks:
        raise ConfigError(
            f"rank.num_blocks = {config.num_blocks}: request {position} needs {num_blocks} blocks"
        )
