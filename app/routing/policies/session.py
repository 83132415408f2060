"""The policy `session`: every session has a rank of its own."""

from __future__ import annotations

from typing import Final

import msgspec

from app.routing.policies.base import Choice, PastChoice, PolicyInput, PolicySpec
from app.routing.policies.predicted_ttft import PREDICTED_TTFT
from app.routing.policies.prediction import chosen
from app.routing.policies.ranking import overloaded
from app.routing.policies.rendezvous import rendezvous_weights
from app.routing.rank_view import RankViews


def session(views: RankViews, given: PolicyInput) -> Choice:
    """The session's own rank, whatever it holds; without a session, as `predicted_ttft`.

    Every session has an order of all ranks that no other rank's coming or going changes (rendezvous
    hashing). The first rank in it that isn't overloaded (`overloaded`) is chosen: so a rank's death moves
    only its own sessions, each to the next of its order, and its return brings them back.

    The cost is the rank's distance in that order, from 0 to 1; 1 more on an overloaded rank.

    Source: V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018, for
    passing over ranks that have too much.
    """
    if given.session_id is None:
        choice = PREDICTED_TTFT.choose(views, given)
        return msgspec.structs.replace(choice, deferred_to=PREDICTED_TTFT.name)
    weights = rendezvous_weights(given.session_id, 1 + int(views.rank.max()))
    costs = 1 - weights[views.rank] / 2.0**64 + overloaded(views)
    return chosen(views, int(costs.argmin()), given.num_tokens, costs)


def _explain(choice: PastChoice) -> str:
    """A cost above 1 is an overloaded rank's, and what it has beyond that is its distance."""
    distances = {each.view.rank: each.cost - (each.cost > 1) for each in choice.candidates}
    passed = sorted(rank for rank, distance in distances.items() if distance < distances[choice.rank])
    if passed:
        return f"rank {choice.rank} is the next in the session's order after {passed}, which are overloaded"
    if len(distances) < choice.dp_size:
        return f"rank {choice.rank} is the first in the session's order of {choice.ranks}"
    return f"rank {choice.rank} is the session's own"


SESSION: Final = PolicySpec(
    name="session",
    description="the session's own rank (x-session-id), or if overloaded, the next in the "
    "session's own order; requests without a session as predicted_ttft",
    choose=session,
    explain=_explain,
    deferral_reason="the request names no x-session-id",
)
