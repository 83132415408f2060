"""Routing cores without Ray and without a clock, and what a test says to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random

from app.events.following.sync_status import Trust
from app.events.schema import LoadStat
from app.hashing import chain, wire_hashes
from app.routing.core import RoutingCore
from app.routing.decisions.decision import Prompt
from app.routing.membership import RoutableRanks
from app.routing.rank_view import ROWS
from app.settings.routing import RoutingConfig

RATE = 1000.0
"""Tokens per second of every rank that hasn't reported another rate."""
TIMEOUT_S = 5.0
"""Of reservations."""


def new_core(policy: str = "predicted_ttft", dp_size: int = 4, *, seed: int = 5) -> RoutingCore:
    """A core whose ranks are all routable and exact, empty and idle."""
    config = RoutingConfig(policy=policy, reservation_timeout_s=TIMEOUT_S, initial_prefill_tokens_per_s=RATE)
    core = RoutingCore(config, dp_size, rng=Random(seed))
    set_routable(core, dict.fromkeys(range(dp_size), "exact"))
    return core


def set_routable(core: RoutingCore, trusts: Mapping[int, Trust]) -> None:
    """These ranks are routable and no others; what is known of the others stays."""
    for rank in core.membership.routable.keys() - trusts.keys():
        core.membership.remove(rank)
    for rank, trust in trusts.items():
        core.membership.set(rank, trust)


def new_prompt(
    request_id: str, tokens: Iterable[int], block_size: int, session_id: str | None = None
) -> Prompt:
    """A request for these tokens."""
    token_ids = list(tokens)
    hashes = wire_hashes(chain(token_ids, block_size))
    return Prompt(request_id, hashes, len(token_ids), block_size, session_id)


def load_stat(
    *,
    rank: int = 0,
    running: int = 0,
    waiting: int = 0,
    waiting_tokens: int = 0,
    prefilled: int = 0,
    busy_us: int = 0,
) -> LoadStat:
    """A report of a rank with no memory held."""
    return LoadStat(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_tokens=0,
        max_total_num_tokens=1000,
        dp_rank=rank,
        num_waiting_uncached_tokens=waiting_tokens,
        num_total_tokens=0,
        max_running_requests=64,
        total_prefill_uncached_tokens=prefilled,
        total_prefill_busy_us=busy_us,
    )


def assigned(core: RoutingCore, rank: int) -> tuple[int, int]:
    """Uncached tokens and requests sent to `rank` so far, as policies see them."""
    counts, _ = core.load.columns(RoutableRanks({rank: "exact"}))
    return counts[ROWS.assigned_tokens].astype(int).item(), counts[ROWS.assigned_requests].astype(int).item()
