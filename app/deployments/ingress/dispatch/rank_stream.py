"""A request's output as one stream, however many ranks it comes from."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

from app.deployments.ingress.dispatch.attempt import Attempt, LostRankError
from app.deployments.ingress.dispatch.deadline import Deadline
from app.deployments.ingress.dispatch.progress import Progress
from app.deployments.ingress.dispatch.rank_search import RankSearch
from app.errors import RankDiedError, RequestError
from app.generation import TokenChunk

logger = logging.getLogger("ray.serve")

OnTokens = Callable[[int], object]
"""Called with the number of tokens in each message; must not wait."""


class RankStream:
    """The output of a request that has its first tokens; iterate it once, and always cancel it afterwards.

    When its rank is lost, or its attempt is moved, it goes on at another rank, with the tokens that an
    undisturbed answer would have had. It ends when all of the request's samples have ended.

    Args:
        attempt: the call that gave the first tokens.
        first: these.
        search: finds the ranks that go on.
        progress: what has come, which isn't `first` yet.
        on_tokens: learns how many come.
        deadline: until when all must have come; None: any time.

    Attributes:
        rank: the rank that began.
        num_prompt_tokens: of the request.
        num_cached_tokens: of these, what that rank had cached.

    Raises (while iterating):
        RankDiedError: the rank was lost, and no other could go on.
        DeadlineError: the time is over.
        RequestError: the rank can't compute the request.
    """

    def __init__(
        self,
        attempt: Attempt,
        first: TokenChunk,
        search: RankSearch,
        progress: Progress,
        on_tokens: OnTokens = lambda num_tokens: None,
        deadline: Deadline | None = None,
    ) -> None:
        self.rank = attempt.rank
        self.num_prompt_tokens = first.num_prompt_tokens
        self.num_cached_tokens = first.num_cached_tokens
        self._attempt = attempt
        self._first = first
        self._search = search
        self._progress = progress
        self._on_tokens = on_tokens
        self._deadline = deadline
        self._result = "aborted"

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        chunk = self._first
        while True:
            chunk = self._progress.take(chunk)
            self._on_tokens(len(chunk.token_ids))
            # What happens to the rank after the last token doesn't matter to this request.
            if self._progress.is_finished:
                self._result = "finished"
            yield chunk
            if self._progress.is_finished:
                return
            try:
                chunk = await self._next()
            except RequestError as error:
                self._result = error.code or "failed"
                raise

    async def _next(self) -> TokenChunk:
        if self._deadline is None:
            return await self._next_from_any()
        async with self._deadline.ends():
            return await self._next_from_any()

    async def _next_from_any(self) -> TokenChunk:
        try:
            return await self._attempt.next_chunk()
        except LostRankError as lost:
            self._attempt.close(lost.result)
            logger.warning("%s while it answered request %s", lost, self._attempt.request_id)
            try:
                self._attempt, chunk = await self._search.next_rank(lost)
            except RequestError as error:
                # Whatever it says, the client isn't at fault: the request was being answered.
                raise RankDiedError(
                    f"{lost} while it answered, and the answer can't go on elsewhere: {error.message}"
                ) from error
            return chunk

    def cancel(self) -> None:
        """Abort the request on its rank, unless it has ended there, and record the result.

        The iteration's own end would not do: an iteration that never began has none, and one that was given
        up ends only when it is collected.
        """
        self._attempt.close(self._result)
