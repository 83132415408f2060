"""Finds ranks for one request, the first one and those that go on after it, until one sends tokens.

    choose ──▶ call the rank ──▶ first tokens
      ▲            │
      └────────────┤ the rank was lost: counts against `max_retries`
                   ├ it was gone before the call, or the attempt was taken from it as planned: doesn't count
                   └ its queue is full: doesn't count

None of them is chosen again while there are others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from app import hashing
from app.deployments.ingress.dispatch.attempt import Attempt, GenerateCall, LostRankError
from app.deployments.ingress.dispatch.live_attempts import LiveAttempts
from app.deployments.ingress.dispatch.patient_routers import PatientRouters
from app.deployments.ingress.dispatch.progress import Progress
from app.deployments.messages import Assignment, ChooseRequest, RankReplica
from app.errors import LiveRequestIdError, NoRankError, NoRouterError, QueueFullError, RequestError
from app.generation import GenerateRequest, TokenChunk
from app.routing.decisions.decision_log import Outcome

logger = logging.getLogger("ray.serve")

MAX_PAUSE_S = 1.0
"""Longest pause between two questions for a rank while none can take the request."""


class Ranks(Protocol):
    """What dispatching needs of ranks; `RankClient` has it."""

    def generate(self, request: GenerateRequest, *, replica_id: str) -> GenerateCall:
        """Start a request on a rank."""


OnChoice = Callable[[ChooseRequest, Assignment, int], object]
"""Called with each choice of a rank, and its number, before the rank is; must not wait."""


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """How much is tried for one request.

    Attributes:
        max_retries: other ranks tried, before and after its first tokens together.
        rank_wait_s: how long a rank is waited for while none can take the request.
        pause_s: between two questions at first; it doubles up to `MAX_PAUSE_S`.
        min_patience_s, patience_factor: a rank may send nothing for this time, or for so many times what was
            predicted until its first token, whichever is longer.
    """

    max_retries: int
    rank_wait_s: float
    pause_s: float = 0.2
    min_patience_s: float = 60.0
    patience_factor: float = 10.0


@dataclass(frozen=True, slots=True)
class SearchMeans:
    """What all searches of one ingress share.

    Attributes:
        routers: choose.
        ranks: serve.
        live: has every attempt that hasn't ended.
        record_outcome: takes every attempt's outcomes for the routers; must not wait.
        block_size: tokens per KV block, for the hashes that the router compares.
        model: `model.path`, whose ranks alone can take the requests.
        limits: how much is tried.
    """

    routers: PatientRouters
    ranks: Ranks
    live: LiveAttempts
    record_outcome: Callable[[Outcome], None]
    block_size: int
    model: str
    limits: SearchLimits


class RankSearch:
    """One request's way over the ranks.

    Args:
        means: what all searches share.
        progress: what has come of the request.
        request: what is wanted.
        pinned_rank: the only rank that the client allows.
        session_id: the session that the client named, if it did.
        on_choice: learns of every choice.
    """

    def __init__(
        self,
        means: SearchMeans,
        progress: Progress,
        request: GenerateRequest,
        pinned_rank: int | None,
        session_id: str | None,
        on_choice: OnChoice = lambda choose, assignment, choice_seq: None,
    ) -> None:
        self._means = means
        self._progress = progress
        self._request = request
        self._pinned_rank = pinned_rank
        self._session_id = session_id
        self._on_choice = on_choice
        self._left: set[RankReplica] = set()
        """Not chosen as long as there are others."""
        self._lost: list[LostRankError] = []
        self._known_loss: LostRankError | None = None
        self._num_failures = 0
        self._wait_until = 0.0

    async def next_rank(self, lost: LostRankError | None = None) -> tuple[Attempt, TokenChunk]:
        """An attempt that has sent tokens, and these.

        Args:
            lost: how the attempt before it ended.

        Raises:
            RequestError: the request is refused, or no rank is left to try.
        """
        found = None
        try:
            self._known_loss = lost
            found = await self._search(lost)
            return found
        finally:
            if found is None:
                # A router may have reserved the work even if the caller gave up before its answer.
                self._means.routers.release(self._request.request_id)

    def choose_request(self) -> ChooseRequest:
        """What a router is asked now.

        Once the rank that a client named is being replaced any rank may go on: the number may be free for
        as long as a redeploy takes.

        The output counts as prompt, and its full blocks may be cached elsewhere. Of several samples it is the
        longest one's: a router looks up one prompt.
        """
        output = self._progress.longest_output
        token_ids = self._request.prompt_token_ids + output
        # A prompt whose logprobs are wanted is computed in full, wherever it is cached.
        is_scored = self._request.params.prompt_logprobs is not None and not output
        hashed = [] if is_scored else token_ids
        digests = hashing.chain(hashed, self._means.block_size, hashing.seed(self._request.cache_salt))
        return ChooseRequest(
            request_id=self._request.request_id,
            block_hashes=hashing.wire_hashes(digests),
            num_tokens=len(token_ids),
            pinned_rank=None if any(lost.is_planned for lost in self._lost) else self._pinned_rank,
            exclude=frozenset(self._left),
            session_id=self._session_id,
            num_output_tokens=len(output),
            model=self._means.model,
        )

    async def _search(self, lost: LostRankError | None) -> tuple[Attempt, TokenChunk]:
        while True:
            if lost is not None:
                await self._take_loss(lost)
            # A replica that is gone again and again, while a router believes in it, doesn't prolong the wait.
            if lost is None or lost.was_reached:
                self._wait_until = time.monotonic() + self._means.limits.rank_wait_s
            elif time.monotonic() >= self._wait_until and self._has_lost_before(lost):
                raise self._no_rank("no rank that a router chose was there")
            try:
                return await self._try_ranks()
            except LostRankError as error:
                lost = error

    async def _take_loss(self, lost: LostRankError) -> None:
        """Count a rank that was lost, and report it if it is for others too.

        Raises:
            NoRankError: too many were.
        """
        self._lost.append(lost)
        self._left.add(lost.replica)
        self._num_failures += lost.is_failure
        if lost.is_dead:
            await self._means.routers.mark_failed(lost.replica)
        allowed = self._means.limits.max_retries
        if lost.is_failure and self._num_failures > allowed:
            raise self._no_rank(f"no further rank is tried (ingress.max_retries = {allowed})")

    def _has_lost_before(self, lost: LostRankError) -> bool:
        """Whether the request was lost on this replica before this time."""
        return any(each.replica == lost.replica for each in self._lost if each is not lost)

    def _no_rank(self, reason: str) -> NoRankError:
        """With what became of the ranks that were tried, but for the one that the caller knows of."""
        losses = dict.fromkeys(str(lost) for lost in self._lost if lost is not self._known_loss)
        return NoRankError("; ".join([reason, *losses]))

    async def _try_ranks(self) -> tuple[Attempt, TokenChunk]:
        """Call ranks until one sends tokens.

        Once the request has had a rank, a full queue is waited for, and so is one where the request is still
        live from before.
        """
        choose = self.choose_request()
        while True:
            assignment, choice_seq = await self._choose(choose)
            self._on_choice(choose, assignment, choice_seq)
            try:
                return await self._call(assignment, choice_seq)
            except (QueueFullError, LiveRequestIdError):
                if not self._lost or time.monotonic() >= self._wait_until:
                    raise
                self._left.add(RankReplica(assignment.rank, assignment.replica_id))

    async def _choose(self, choose: ChooseRequest) -> tuple[Assignment, int]:
        """A rank's replica, once there is one that can take the request.

        A new request for a rank that its client named isn't held: the client can name another one.
        """
        may_wait = self._pinned_rank is None or bool(self._lost)
        pause_s = self._means.limits.pause_s
        while True:
            try:
                return await self._means.routers.choose(replace(choose, exclude=frozenset(self._left)))
            except NoRouterError:
                raise
            except NoRankError as error:
                if not may_wait or time.monotonic() >= self._wait_until:
                    raise self._no_rank(error.message) from error
            # There are no others: one that was left may be back, and routers know which of them are dead.
            self._left.clear()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _call(self, assignment: Assignment, choice_seq: int) -> tuple[Attempt, TokenChunk]:
        """The attempt once it has sent tokens.

        Raises:
            LostRankError: it was lost before.
            RequestError: the rank refuses the request.
        """
        attempt = self._begin(assignment, choice_seq)
        result: str | None = "failed"
        try:
            chunk = await attempt.next_chunk()
            result = None
            return attempt, chunk
        except LostRankError as lost:
            result = lost.result
            logger.warning("%s before it sent tokens of request %s", lost, attempt.request_id)
            raise
        except RequestError as error:
            result = error.code or result
            raise
        except asyncio.CancelledError:
            result = "aborted"
            raise
        finally:
            if result is not None:
                attempt.close(result)

    def _begin(self, assignment: Assignment, choice_seq: int) -> Attempt:
        limits, means = self._means.limits, self._means
        attempt = Attempt(
            means.record_outcome,
            self._request.request_id,
            RankReplica(assignment.rank, assignment.replica_id),
            means.ranks.generate(self._progress.rest, replica_id=assignment.replica_id),
            choice_seq=choice_seq,
            patience_s=max(limits.min_patience_s, limits.patience_factor * assignment.predicted_ttft_s),
            on_end=means.live.remove,
        )
        means.live.add(attempt)
        return attempt
