"""A decision's receipt: the answer to "why that rank?", as JSON."""

from __future__ import annotations

from math import isfinite
from typing import Any

from app.routing.decisions.decision import Decision, obstacle
from app.routing.decisions.decision_log import Record
from app.routing.decisions.reasons import reasons
from app.routing.policies.prediction import admission_s, predicted_ttft_s
from app.routing.rank_view import RankView, RankViews

Json = dict[str, Any]
Receipt = Json
"""The whole explanation of one decision, in the form that `docs/operations.md` describes."""


def explanation(decision: Decision, dp_size: int) -> Receipt:
    """The receipt of one decision, with a row for every rank that was there or is below `dp_size`."""
    views = {view.rank: view for view in decision.views}
    costs = {each.view.rank: each.cost for each in decision.considered}
    ranks = sorted({*range(dp_size), *views, *decision.unavailable})
    return {
        "policy": decision.policy,
        "deferred_by": decision.deferred_by,
        "resumed": decision.num_output_tokens > 0,
        "output_tokens": decision.num_output_tokens,
        "prompt_tokens": decision.num_tokens - decision.num_output_tokens,
        "prompt_blocks": decision.num_blocks,
        "winner": decision.rank,
        "why": reasons(decision, len(ranks)),
        "cached_tokens": decision.cached_tokens,
        "regret_tokens": decision.regret_tokens,
        "predicted_ttft_s": decision.predicted_ttft_s,
        "pinned_rank": decision.pinned_rank,
        "failed_ranks": sorted(decision.exclude),
        "ranks": [_row(decision, rank, views.get(rank), costs.get(rank)) for rank in ranks],
    }


def record_json(record: Record, dp_size: int) -> Receipt:
    """The receipt of a decision that was acted upon, and what came of it."""
    return {
        "choice": record.decision.choice_seq,
        "decided_at": record.decided_at,
        "outcome": record.result,
        "actual_ttft_s": record.ttft_s,
        **explanation(record.decision, dp_size),
    }


def _row(decision: Decision, rank: int, view: RankView | None, cost: float | None) -> Json:
    why_not = _why_not(decision, rank, view)
    if view is None:
        return {"rank": rank, "eligible": False, "why_not": why_not}
    counts, uncached_tokens = view.counts, decision.num_tokens - view.cached_tokens
    return {
        "rank": rank,
        "eligible": why_not is None,
        "why_not": why_not,
        "trust": view.trust,
        "cached_tokens": view.cached_tokens,
        "uncached_tokens": uncached_tokens,
        "waiting_tokens": int(counts.waiting_tokens),
        "num_requests": int(counts.num_requests),
        "free_tokens": int(counts.free_tokens) if isfinite(counts.free_tokens) else None,
        "admission_s": admission_s(view, decision.num_tokens),
        "prefill_tokens_per_s": view.prefill_rate,
        # Of every rank alike, whichever policy chose.
        "predicted_ttft_s": predicted_ttft_s(RankViews.of([view]), 0, uncached_tokens),
        "cost": cost,
    }


def _why_not(decision: Decision, rank: int, view: RankView | None) -> str | None:
    """Why the rank couldn't be chosen; None if it could."""
    if view is None or rank in decision.exclude:
        return obstacle(rank, decision.unavailable, decision.exclude)
    if decision.pinned_rank not in (None, rank):
        return f"the client named rank {decision.pinned_rank}"
    return None
