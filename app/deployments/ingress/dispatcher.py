"""From a tokenized prompt to a rank's stream: ask a router, call the rank, try another one if it died.

choose ──▶ call the rank ──▶ first message ──▶ the answer begins; from here on a death is an error
  ▲                              │
  └── the rank died, or is no ◀──┘
      longer that replica
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from app import hashing
from app.deployments.ingress.attempt import Attempt, GenerateCall, RankStream
from app.deployments.messages import Assignment, ChooseRequest, Json, NotAddressed, RankMessage, Refusal
from app.errors import EngineFailedError, NoRankError, NoRouterError, RankGoneError
from app.generation import GenerateRequest
from app.routing.decisions.decision_log import Outcome

logger = logging.getLogger("ray.serve")

Answer = TypeVar("Answer")


class Routers(Protocol):
    """What dispatching needs of routers; `RouterClient` has it."""

    async def choose(self, request: ChooseRequest) -> Assignment:
        """Raises `NoRouterError` when none answers, another `RequestError` when it can't choose."""

    async def explain(self, request: ChooseRequest) -> Json:
        """Raises as `choose` does."""

    async def mark_failed(self, rank: int, replica_id: str) -> None:
        """Never raises."""

    async def release(self, request_id: str) -> None:
        """Never raises."""


class Ranks(Protocol):
    """What dispatching needs of ranks; `RankClient` has it."""

    def generate(self, request: GenerateRequest, *, replica_id: str) -> GenerateCall:
        """Start a request on a rank."""


class Dispatcher:
    """Starts requests on ranks.

    Args:
        routers: choose.
        ranks: serve.
        record_outcome: takes every attempt's outcomes for the routers; must not wait.
        block_size: tokens per KV block, for the hashes that the router compares.
        max_retries: ranks tried after the first one.
        router_patience_s: how long a router is waited for. By default longer than Ray takes to replace one
            that died, and that one to answer all requests that waited: on two busy cores 10 s and 15 s were
            seen.
        router_retry_s: pause after a router that didn't answer.
    """

    def __init__(
        self,
        routers: Routers,
        ranks: Ranks,
        record_outcome: Callable[[Outcome], None],
        *,
        block_size: int,
        max_retries: int,
        router_patience_s: float = 30.0,
        router_retry_s: float = 0.2,
    ) -> None:
        self._routers = routers
        self._ranks = ranks
        self._record_outcome = record_outcome
        self._block_size = block_size
        self._max_retries = max_retries
        self._router_patience_s = router_patience_s
        self._router_retry_s = router_retry_s
        self._choice_seqs = itertools.count()
        self._releases: set[asyncio.Task[Any]] = set()
        """Keeps tasks that aren't awaited from being collected before they end."""

    async def start(
        self, request: GenerateRequest, pinned_rank: int | None, session_id: str | None
    ) -> RankStream:
        """The stream of a request that has produced its first token.

        Args:
            request: what is wanted.
            pinned_rank: the only rank that the client allows.
            session_id: the session that the client named, if it did.

        Raises:
            RequestError: the router or the rank refuses the request, or no rank is left to try.
            RankCallError: the call to the rank broke off, though the rank is still there.
        """
        choose = self._choose_request(request, pinned_rank, session_id)
        stream = None
        try:
            stream = await self._start_on_some_rank(request, choose)
            return stream
        finally:
            if stream is None:
                # A router may have reserved the work even if the caller gave up before its answer.
                self._release(request.request_id)

    async def explain(
        self, request: GenerateRequest, pinned_rank: int | None, session_id: str | None
    ) -> Json:
        """The receipt of what a router would decide on the same arguments to `start`; nothing is reserved.

        Raises:
            RequestError: the router refuses the request, or no rank could take it.
        """
        return await self._ask_router(
            self._routers.explain, self._choose_request(request, pinned_rank, session_id)
        )

    def _choose_request(
        self, request: GenerateRequest, pinned_rank: int | None, session_id: str | None
    ) -> ChooseRequest:
        digests = hashing.chain(request.prompt_token_ids, self._block_size, hashing.seed(request.cache_salt))
        return ChooseRequest(
            request_id=request.request_id,
            block_hashes=hashing.wire_hashes(digests),
            num_tokens=len(request.prompt_token_ids),
            pinned_rank=pinned_rank,
            session_id=session_id,
        )

    async def _start_on_some_rank(self, request: GenerateRequest, choose: ChooseRequest) -> RankStream:
        failed: set[int] = set()
        for _ in range(1 + self._max_retries):
            choose = replace(choose, exclude=frozenset(failed))
            assignment = await self._ask_router(self._routers.choose, choose)
            stream = await self._start_on(assignment, request)
            if stream is not None:
                return stream
            failed.add(assignment.rank)
            # This also drops what the routers had reserved there.
            await self._routers.mark_failed(assignment.rank, assignment.replica_id)
        raise NoRankError(f"ranks {sorted(failed)} died one after another before the first token")

    async def _ask_router(
        self, ask: Callable[[ChooseRequest], Awaitable[Answer]], request: ChooseRequest
    ) -> Answer:
        deadline = time.monotonic() + self._router_patience_s
        while time.monotonic() < deadline:
            try:
                return await ask(replace(request, choice_seq=next(self._choice_seqs)))
            except NoRouterError:
                logger.warning("no router for request %s yet", request.request_id)
                await asyncio.sleep(self._router_retry_s)
        raise NoRouterError("no router answers")

    async def _start_on(self, assignment: Assignment, request: GenerateRequest) -> RankStream | None:
        """The stream once its first token is there; None if the replica is gone or broken."""
        rank = assignment.rank
        call = self._ranks.generate(request, replica_id=assignment.replica_id)
        attempt = Attempt(self._record_outcome, request.request_id, rank)
        stream, result = None, "failed"
        try:
            first = await anext(call)
            if isinstance(first, NotAddressed) or _is_broken(first):
                result = "died"
            elif isinstance(first, Refusal):
                result = first.error.code or result
                raise first.error
            else:
                attempt.record_first_token()
                stream = RankStream(rank, first, call, attempt, request.n)
        except (RankGoneError, StopAsyncIteration) as error:
            result = "died"
            logger.warning("rank %d died before request %s began: %s", rank, request.request_id, error)
        except asyncio.CancelledError:
            result = "aborted"
            raise
        finally:
            if stream is None:
                call.cancel()
                attempt.record_result(result)
        return stream

    def _release(self, request_id: str) -> None:
        """End the request's reservation, whichever router made it, without waiting for that."""
        task = asyncio.create_task(self._routers.release(request_id))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)


def _is_broken(message: RankMessage) -> bool:
    """Whether the rank lives but its engine doesn't: Ray will replace it."""
    return isinstance(message, Refusal) and isinstance(message.error, EngineFailedError)
