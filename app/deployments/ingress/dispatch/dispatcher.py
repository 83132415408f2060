"""Starts requests on ranks, and says where they would go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from app.deployments.ingress.dispatch.deadline import Deadline
from app.deployments.ingress.dispatch.live_attempts import LiveAttempts
from app.deployments.ingress.dispatch.patient_routers import PatientRouters, Routers
from app.deployments.ingress.dispatch.progress import Progress
from app.deployments.ingress.dispatch.rank_search import (
    OnChoice,
    Ranks,
    RankSearch,
    SearchLimits,
    SearchMeans,
)
from app.deployments.ingress.dispatch.rank_stream import OnTokens, RankStream
from app.deployments.messages import Json
from app.generation import GenerateRequest
from app.routing.decisions.decision_log import Outcome


class Dispatcher:
    """Starts requests on ranks.

    Args:
        routers: choose.
        ranks: serve.
        record_outcome: takes every attempt's outcomes for the routers; must not wait.
        block_size: tokens per KV block, for the hashes that the router compares.
        model: `model.path`, whose ranks alone can take the requests; empty for any.
        limits: how much is tried for one request.
        router_patience_s: how long a router is waited for. By default longer than Ray takes to replace one
            that died, and that one to answer all requests that waited: on two busy cores 10 s and 15 s were
            seen.
        router_retry_s: first pause after a router that didn't answer.

    Attributes:
        live: every attempt that hasn't ended.
    """

    def __init__(
        self,
        routers: Routers,
        ranks: Ranks,
        record_outcome: Callable[[Outcome], None],
        *,
        block_size: int,
        model: str = "",
        limits: SearchLimits,
        router_patience_s: float = 30.0,
        router_retry_s: float = 0.2,
    ) -> None:
        self.live = LiveAttempts()
        self._routers = PatientRouters(routers, patience_s=router_patience_s, retry_s=router_retry_s)
        self._means = SearchMeans(self._routers, ranks, self.live, record_outcome, block_size, model, limits)

    async def start(
        self,
        request: GenerateRequest,
        pinned_rank: int | None,
        session_id: str | None,
        on_choice: OnChoice = lambda choose, assignment, choice_seq: None,
        on_tokens: OnTokens = lambda num_tokens: None,
        deadline: Deadline | None = None,
    ) -> RankStream:
        """The stream of a request that has produced its first token.

        Args:
            request: what is wanted.
            pinned_rank: the only rank that the client allows.
            session_id: the session that the client named, if it did.
            on_choice: learns of every choice of a rank, also of those that go on later.
            on_tokens: called with the number of tokens in each message.
            deadline: until when all of it must have come; None: any time.

        Raises:
            DeadlineError: that time is over.
            RequestError: the router or the rank refuses the request, or no rank is left to try.
        """
        progress = Progress(request)
        search = RankSearch(self._means, progress, request, pinned_rank, session_id, on_choice)
        async with nullcontext() if deadline is None else deadline.ends():
            attempt, first = await search.next_rank()
        return RankStream(attempt, first, search, progress, on_tokens, deadline)

    async def explain(
        self, request: GenerateRequest, pinned_rank: int | None, session_id: str | None
    ) -> Json:
        """The receipt of what a router would decide on the same arguments to `start`; nothing is reserved.

        Raises:
            RequestError: the router refuses the request, or no rank could take it.
        """
        search = RankSearch(self._means, Progress(request), request, pinned_rank, session_id)
        return await self._routers.explain(search.choose_request())
