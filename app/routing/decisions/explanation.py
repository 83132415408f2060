"""A decision as JSON, for whoever asks "why that rank?"."""

from __future__ import annotations

from math import isfinite
from typing import Any

from app.routing.decisions.chooser import Decision
from app.routing.decisions.decision_log import Record
from app.routing.decisions.reasons import reasons
from app.routing.policies.policy import admission_s, predicted_ttft
from app.routing.rank_view import RankView

Json = dict[str, Any]


def explanation(decision: Decision, dp_size: int) -> Json:
    """The receipt of one decision, with a row for every rank of the deployment, alive or not."""
    num_tokens = decision.cached_tokens + decision.uncached_tokens
    views = {view.rank: view for view in decision.views}
    costs = {each.view.rank: each.cost for each in decision.considered}
    ranks = range(dp_size)
    return {
        "policy": decision.policy,
        "deferred_by": decision.deferred_by,
        "prompt_tokens": num_tokens,
        "prompt_blocks": decision.num_blocks,
        "winner": decision.rank,
        "why": reasons(decision, dp_size),
        "cached_tokens": decision.cached_tokens,
        "missed_cached_tokens": decision.missed_tokens,
        "predicted_ttft_s": decision.predicted_ttft_s,
        "pinned_rank": decision.pinned_rank,
        "failed_ranks": sorted(decision.exclude),
        "ranks": [_row(decision, rank, views.get(rank), costs.get(rank)) for rank in ranks],
    }


def record_json(record: Record, dp_size: int) -> Json:
    """The receipt of a decision that was acted upon, and what came of it."""
    return {
        "decided_at": record.decided_at,
        "outcome": record.result,
        "actual_ttft_s": record.ttft_s,
        **explanation(record.decision, dp_size),
    }


def _row(decision: Decision, rank: int, view: RankView | None, cost: float | None) -> Json:
    obstacle = _obstacle(decision, rank, view)
    if view is None:
        return {"rank": rank, "eligible": False, "why_not": obstacle}
    num_tokens = decision.cached_tokens + decision.uncached_tokens
    chosen = rank == decision.rank
    return {
        "rank": rank,
        "eligible": obstacle is None,
        "why_not": obstacle,
        "trust": view.trust,
        "cached_tokens": view.cached_tokens,
        "uncached_tokens": num_tokens - view.cached_tokens,
        "waiting_tokens": view.waiting_tokens,
        "num_requests": view.num_requests,
        "free_tokens": int(view.free_tokens) if isfinite(view.free_tokens) else None,
        "admission_s": admission_s(view, num_tokens),
        "prefill_tokens_per_s": view.prefill_rate,
        "predicted_ttft_s": decision.predicted_ttft_s if chosen else _predicted_ttft_s(view, num_tokens),
        "cost": cost,
    }


def _obstacle(decision: Decision, rank: int, view: RankView | None) -> str | None:
    """Why the rank couldn't be chosen; None if it could."""
    if rank in decision.exclude:
        return "the request has failed there already"
    if view is None:
        return "not alive"
    if decision.pinned_rank not in (None, rank):
        return f"the client named rank {decision.pinned_rank}"
    return None


def _predicted_ttft_s(view: RankView, num_tokens: int) -> float:
    """As if `view` were the only rank: the prediction is of one rank, whatever policy chooses."""
    return predicted_ttft([view], num_tokens).predicted_ttft_s
