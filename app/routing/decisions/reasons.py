"""Why a decision chose its rank, in words: what the policy goes by, and what it gave up for that."""

from __future__ import annotations

from app.events.following.sync_status import CREDITED
from app.routing.decisions.decision import Decision
from app.routing.policies.base import PastChoice
from app.routing.policies.registry import POLICIES


def reasons(decision: Decision, dp_size: int) -> str:
    """Sentences joined by semicolons; `dp_size` is the number of ranks that are there or should be."""
    if decision.pinned_rank is not None:
        return f"the client named rank {decision.rank}"
    if len(decision.candidates) == 1:
        return f"rank {decision.rank} is the only one that could be chosen"
    policy = POLICIES[decision.policy]
    choice = policy.explain(PastChoice(policy, decision.rank, decision.considered, dp_size))
    sentences = (_deferral(decision), choice, _by_cache(decision), _uncredited(decision), _partial(decision))
    return "; ".join(filter(None, sentences))


def _deferral(decision: Decision) -> str:
    if decision.deferred_by is None:
        return ""
    reason = POLICIES[decision.deferred_by].deferral_reason
    return f"{decision.deferred_by} left the choice to {decision.policy}: {reason}"


def _by_cache(decision: Decision) -> str:
    held = f"it holds {decision.cached_tokens} of the prompt's {decision.num_tokens} tokens"
    if not decision.regret_tokens:
        return held
    best = max(decision.candidates, key=lambda view: view.cached_tokens)
    other = f"rank {best.rank} holds {best.cached_tokens}"
    policy = POLICIES[decision.policy]
    if not policy.looks_at_caches:
        return f"{held}, {other}, which {policy.name} doesn't look at"
    return f"{held}, {other} but has {policy.describe_load(best, decision.num_tokens)}"


def _uncredited(decision: Decision) -> str:
    unknown = [view.rank for view in decision.candidates if view.trust not in CREDITED]
    return f"ranks {unknown} are syncing or stale and are credited nothing" if unknown else ""


def _partial(decision: Decision) -> str:
    partial = [view.rank for view in decision.candidates if view.trust == "partial"]
    return f"ranks {partial} are partial and may hold more than is known" if partial else ""
