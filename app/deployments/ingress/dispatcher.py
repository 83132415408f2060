"""From a tokenized prompt to a rank's stream: ask a router, call the rank, try another one if it died.

choose ──▶ call the rank ──▶ first message ──▶ the answer begins; from here on a death is an error
  ▲                              │
  └── the rank died, is no ◀─────┘
      longer that replica, or
      can serve nothing now
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from app import hashing
from app.deployments.ingress.attempt import Attempt, GenerateCall, RankStream
from app.deployments.messages import Assignment, ChooseRequest, Json, NotAddressed, Refusal
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
        failed: dict[int, str] = {}
        for _ in range(1 + self._max_retries):
            choose = replace(choose, exclude=frozenset(failed))
            try:
                assignment = await self._ask_router(self._routers.choose, choose)
            except NoRankError as error:
                if not failed:
                    raise
                raise NoRankError(f"{error.message}; {_failures(failed)}") from error
            try:
                return await self._start_on(assignment, request)
            except _LostRankError as error:
                failed[assignment.rank] = str(error)
            # This also drops what the routers had reserved there.
            await self._routers.mark_failed(assignment.rank, assignment.replica_id)
        raise NoRankError(f"no rank that was tried sent a token: {_failures(failed)}")

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

    async def _start_on(self, assignment: Assignment, request: GenerateRequest) -> RankStream:
        """The stream once its first token is there.

        Raises:
            _LostRankError: the replica is gone, broken, or can serve nothing now; another rank may.
            RequestError: the rank refuses the request.
            RankCallError: the call broke off, though the rank is still there.
        """
        rank = assignment.rank
        call = self._ranks.generate(request, replica_id=assignment.replica_id)
        attempt = Attempt(self._record_outcome, request.request_id, rank)
        stream, result = None, "failed"
        try:
            first = await anext(call)
            if isinstance(first, Refusal):
                result = first.error.code or result
                raise first.error
            if isinstance(first, NotAddressed):
                raise RankGoneError(f"replica {assignment.replica_id} is gone")
            attempt.record_first_token()
            stream = RankStream(rank, first, call, attempt, request.n)
            return stream
        except EngineFailedError as error:
            # The rank lives, but its engine doesn't, or can't serve now.
            result = "died"
            raise _LostRankError(f"failed: {error.message}") from error
        except (RankGoneError, StopAsyncIteration) as error:
            result = "died"
            logger.warning("rank %d died before request %s began: %s", rank, request.request_id, error)
            raise _LostRankError("died") from error
        except asyncio.CancelledError:
            result = "aborted"
            raise
        finally:
            if stream is None:
                call.cancel()
                attempt.record_result(result)

    def _release(self, request_id: str) -> None:
        """End the request's reservation, whichever router made it, without waiting for that."""
        task = asyncio.create_task(self._routers.release(request_id))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)


class _LostRankError(Exception):
    """A rank sent nothing of a request, which another may serve. The message says what it did instead."""


def _failures(failed: Mapping[int, str]) -> str:
    return "; ".join(f"rank {rank} {outcome}" for rank, outcome in failed.items())
