"""From a tokenized prompt to a rank's stream: ask the router, call the rank, try another if it died.

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
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from app import hashing
from app.deployments.batch_sender import BatchSender
from app.deployments.ingress.attempt import Attempt
from app.deployments.messages import (
    Assignment,
    ChooseRequest,
    NotAddressed,
    RankMessage,
    Refusal,
    Unroutable,
)
from app.deployments.router_client import ROUTER_TIMEOUT_S, tell_routers
from app.errors import EngineFailedError, NoRankError, RankDiedError, RequestError
from app.generation import GenerateRequest, TokenChunk

logger = logging.getLogger("ray.serve")

_ROUTER_PATIENCE_S = 30.0
"""Longer than Ray takes to replace a router that died, and that one to answer all who waited: on two busy
cores 10 s and 15 s were seen."""
_ROUTER_RETRY_S = 0.2
_NEWS_INTERVAL_S = 0.2
"""For so long news of requests is collected before the routers hear of it."""


class RankStream:
    """A request's output from the rank that serves it; iterate it once, and cancel it whatever comes of that.

    Raises (while iterating):
        RankDiedError: the rank died after its first token.
        RequestError: the rank's engine failed.

    It ends when all of `num_samples` have ended.
    """

    def __init__(
        self,
        rank: int,
        first: TokenChunk,
        rest: AsyncIterator[RankMessage],
        cancel: Callable[[], object],
        on_end: Callable[[str], object],
        num_samples: int = 1,
    ) -> None:
        self.rank = rank
        self._first = first
        self._rest = rest
        self._cancel = cancel
        self._on_end = on_end
        self._result = "aborted"
        self._num_samples = num_samples

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        chunk, unfinished = self._first, self._num_samples
        while True:
            unfinished -= chunk.finish_reason is not None
            # What happens to the rank after the last token is of no concern to this request.
            if not unfinished:
                self._result = "finished"
            yield chunk
            if not unfinished:
                return
            try:
                chunk = await self._next()
            except RequestError as error:
                self._result = error.code or "failed"
                raise

    async def _next(self) -> TokenChunk:
        try:
            message: RankMessage = await anext(self._rest)
        except RayTaskError as error:
            logger.error("rank %d failed: %s", self.rank, error)
            raise EngineFailedError(f"rank {self.rank} failed; its log says why") from None
        except (RayError, StopAsyncIteration):
            incomplete = f"rank {self.rank} died while it answered; the answer is incomplete"
            raise RankDiedError(incomplete) from None
        if isinstance(message, Refusal):
            raise message.error
        assert isinstance(message, TokenChunk), message
        return message

    def cancel(self) -> None:
        """Abort the request on its rank, unless it has ended there.

        Not left to the iteration's own end: nobody ends an iteration that was never begun, and one that was
        given up ends only when it is collected.
        """
        self._cancel()
        self._on_end(self._result)


class Dispatcher:
    """Starts requests on ranks.

    Args:
        router: handle of the `Router` deployment.
        ranks: handle of the `DPRank` deployment.
        block_size: tokens per KV block, for the hashes that the router compares.
        max_retries: ranks tried after the first one.
    """

    def __init__(
        self,
        router: DeploymentHandle[Any],
        ranks: DeploymentHandle[Any],
        *,
        block_size: int,
        max_retries: int,
    ) -> None:
        # Over gRPC a message costs a fraction of what Ray's object transport takes.
        self._router: DeploymentHandle[Any] = router.options(_by_reference=False)
        self._ranks: DeploymentHandle[Any] = ranks.options(stream=True, _by_reference=False)
        self._block_size = block_size
        self._max_retries = max_retries
        self._outcomes = BatchSender(
            partial(tell_routers, self._router, "record_outcomes"), interval_s=_NEWS_INTERVAL_S
        )
        self._choice_seqs = itertools.count()
        self._releases: set[asyncio.Future[Any]] = set()
        """Keeps calls that nobody awaits from being collected before they end."""

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
        """
        choose = self._choose_request(request, pinned_rank, session_id)
        stream = None
        try:
            stream = await self._start_somewhere(request, choose)
            return stream
        finally:
            if stream is None:
                # Even a caller who gave up while the router was asked may have had its work reserved.
                self._release(request.request_id)

    async def explain(
        self, request: GenerateRequest, pinned_rank: int | None, session_id: str | None
    ) -> dict[str, Any]:
        """The receipt of what a router would decide on the same arguments to `start`; nothing is reserved.

        Raises:
            RequestError: the router refuses the request, or no rank could take it.
        """
        receipt: dict[str, Any] = await self._ask_router(
            "explain", self._choose_request(request, pinned_rank, session_id)
        )
        return receipt

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

    async def _start_somewhere(self, request: GenerateRequest, choose: ChooseRequest) -> RankStream:
        failed: set[int] = set()
        for _ in range(1 + self._max_retries):
            assignment: Assignment = await self._ask_router(
                "choose", replace(choose, exclude=frozenset(failed))
            )
            stream = await self._begin(request, assignment)
            if stream is not None:
                return stream
            failed.add(assignment.rank)
            # This also drops what the routers had reserved there.
            await tell_routers(self._router, "mark_failed", assignment.rank, assignment.replica_id)
        raise NoRankError(f"ranks {sorted(failed)} died one after another before the first token")

    async def _ask_router(self, method: str, request: ChooseRequest) -> Any:
        deadline = time.monotonic() + _ROUTER_PATIENCE_S
        while time.monotonic() < deadline:
            numbered = replace(request, choice_seq=next(self._choice_seqs))
            try:
                # Not `wait_for`: on Python 3.11 it can swallow a cancellation, and leave the request running.
                async with asyncio.timeout(ROUTER_TIMEOUT_S):
                    answer = await getattr(self._router, method).remote(numbered)
            except (RayActorError, TimeoutError, DeploymentUnavailableError):
                logger.warning("no router for request %s yet", request.request_id)
                await asyncio.sleep(_ROUTER_RETRY_S)
                continue
            if isinstance(answer, Unroutable):
                raise answer.error
            return answer
        raise NoRankError("no router answers")

    async def _begin(self, request: GenerateRequest, assignment: Assignment) -> RankStream | None:
        """The stream once its first token is there; None if the replica is gone or broken."""
        stream: Any = self._ranks.generate.remote(request, replica_id=assignment.replica_id)
        attempt = Attempt(self._outcomes.put, request.request_id, assignment.rank)
        begun, result = False, "failed"
        try:
            messages = aiter(stream)
            first = await anext(messages)
            if isinstance(first, NotAddressed) or _is_broken(first):
                result = "died"
                return None
            if isinstance(first, Refusal):
                result = first.error.code or result
                raise first.error
            begun = True
            attempt.answers()
            return RankStream(assignment.rank, first, messages, stream.cancel, attempt.end, request.n)
        except (RayActorError, DeploymentUnavailableError, StopAsyncIteration) as error:
            result = "died"
            rank, request_id = assignment.rank, request.request_id
            logger.warning("rank %d died before request %s began: %s", rank, request_id, error)
            return None
        except asyncio.CancelledError:
            result = "aborted"
            raise
        finally:
            if not begun:
                stream.cancel()
                attempt.end(result)

    def _release(self, request_id: str) -> None:
        """Ends the request's reservation wherever it is, without waiting for it."""
        task = asyncio.ensure_future(tell_routers(self._router, "release", request_id))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)


def _is_broken(message: RankMessage) -> bool:
    """Whether the rank lives but its engine doesn't: Ray will replace it."""
    return isinstance(message, Refusal) and isinstance(message.error, EngineFailedError)
