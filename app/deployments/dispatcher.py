"""From a tokenized prompt to a rank's stream: ask the router, call the rank, try another if it died.

choose ──▶ call the rank ──▶ first message ──▶ the answer begins; from here on a death is an error
  ▲                              │
  └── the rank died, or is no ◀──┘
      longer that replica
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from app import hashing
from app.deployments.messages import (
    Assignment,
    ChooseRequest,
    GenerateRequest,
    NotAddressed,
    RankMessage,
    Refusal,
    TokenChunk,
    Unroutable,
)
from app.errors import EngineFailedError, NoRankError, RankDiedError

logger = logging.getLogger("ray.serve")

_ROUTER_ATTEMPTS = 3


class RankStream:
    """A request's output from the rank that serves it; iterate it once, and cancel it whatever comes of that.

    Raises (while iterating):
        RankDiedError: the rank died after its first token.
        RequestError: the rank's engine failed.
    """

    def __init__(self, rank: int, first: TokenChunk, rest: Any) -> None:
        self.rank = rank
        self._first = first
        self._rest = rest

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        try:
            yield self._first
            async for message in self._rest:
                if isinstance(message, Refusal):
                    raise message.error
                yield message
        except RayActorError:
            message = f"rank {self.rank} died while it answered; what came so far is incomplete"
            raise RankDiedError(message) from None
        except RayTaskError as error:
            raise EngineFailedError(f"rank {self.rank} failed: {error.cause!r}") from None

    def cancel(self) -> None:
        """Abort the request on its rank, unless it has ended there.

        Not left to the iteration's own end: nobody ends an iteration that was never begun, and one that was
        given up ends only when it is collected.
        """
        self._rest.cancel()


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
        self._releases: set[asyncio.Future[Any]] = set()
        """Keeps calls that nobody awaits from being collected before they end."""

    async def start(self, request: GenerateRequest, pinned_rank: int | None) -> RankStream:
        """The stream of a request that has produced its first token.

        Raises:
            RequestError: the router or the rank refuses the request, or no rank is left to try.
        """
        failed: set[int] = set()
        digests = hashing.chain(request.prompt_token_ids, self._block_size, hashing.seed(request.cache_salt))
        block_hashes = [hashing.wire_hash(digest) for digest in digests]
        for _ in range(1 + self._max_retries):
            choose = ChooseRequest(
                request_id=request.request_id,
                block_hashes=block_hashes,
                num_tokens=len(request.prompt_token_ids),
                pinned_rank=pinned_rank,
                exclude=frozenset(failed),
            )
            assignment = await self._choose(choose)
            stream = await self._begin(request, assignment)
            if stream is not None:
                return stream
            failed.add(assignment.rank)
            await self._router.broadcast("mark_failed", assignment.rank, assignment.replica_id).results_async(
                return_exceptions=True
            )
        raise NoRankError(f"ranks {sorted(failed)} died one after another before the first token")

    async def _choose(self, request: ChooseRequest) -> Assignment:
        for attempt in range(_ROUTER_ATTEMPTS):
            try:
                answer = await self._router.choose.remote(request)
            except RayActorError:
                logger.warning("a router died during request %s (try %d)", request.request_id, attempt + 1)
                continue
            if isinstance(answer, Unroutable):
                raise answer.error
            return answer
        raise NoRankError("no router answers")

    async def _begin(self, request: GenerateRequest, assignment: Assignment) -> RankStream | None:
        """The stream once its first token is there; None if the replica is gone or broken."""
        stream: Any = self._ranks.generate.remote(request, replica_id=assignment.replica_id)
        begun = False
        try:
            first = await anext(aiter(stream))
            if isinstance(first, NotAddressed) or _is_broken(first):
                return None
            if isinstance(first, Refusal):
                raise first.error
            begun = True
            return RankStream(assignment.rank, first, stream)
        except RayActorError as error:
            rank, request_id = assignment.rank, request.request_id
            logger.warning("rank %d died before request %s began: %s", rank, request_id, error)
            return None
        finally:
            if not begun:
                stream.cancel()
                self._release(request.request_id)

    def _release(self, request_id: str) -> None:
        """Ends the request's reservation wherever it is, without waiting for it."""
        response = self._router.broadcast("release", request_id)
        task = asyncio.ensure_future(response.results_async(return_exceptions=True))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)


def _is_broken(message: RankMessage) -> bool:
    """Whether the rank lives but its engine doesn't: Ray will replace it."""
    return isinstance(message, Refusal) and isinstance(message.error, EngineFailedError)
