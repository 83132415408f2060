"""One attempt to serve a request: the call to a rank, its output, and what became of it for the routers."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from app.deployments.messages import RankMessage, Refusal
from app.errors import EngineFailedError, RankCallError, RankDiedError, RankFailedError, RequestError
from app.generation import TokenChunk
from app.routing.decisions.decision_log import Outcome

logger = logging.getLogger("ray.serve")


class GenerateCall(Protocol):
    """A rank's messages for one request, and the way to abort it there."""

    async def __anext__(self) -> RankMessage:
        """The next message. Raises `RankCallError`; `StopAsyncIteration` when the rank sends no more."""

    def cancel(self) -> None:
        """Abort the request on its rank, unless it has ended there."""


class Attempt:
    """Records the outcomes of one call, which begins now.

    Args:
        record: takes each outcome; must not wait.
        request_id: the request's.
        rank: the rank that is called.
    """

    def __init__(self, record: Callable[[Outcome], None], request_id: str, rank: int) -> None:
        self._record = record
        self._request_id = request_id
        self._rank = rank
        self._called_at = time.monotonic()
        self._ttft_s: float | None = None

    def record_first_token(self) -> None:
        """The first token has arrived; the time until now is the time to first token."""
        self._ttft_s = time.monotonic() - self._called_at
        self.record_result("answering")

    def record_result(self, result: str) -> None:
        """The attempt has this result, final unless it is "answering"; see `Outcome`."""
        self._record(Outcome(self._request_id, self._rank, result, self._ttft_s))


class RankStream:
    """A request's output from the rank that serves it; iterate it once, and always cancel it afterwards.

    It ends when all of `num_samples` have ended.

    Args:
        rank: the rank.
        first: the call's first message.
        call: has the rest.
        attempt: records the result.
        num_samples: samples that the request wants.

    Raises (while iterating):
        RankDiedError: the rank died after its first token.
        RequestError: the rank's engine failed.
    """

    def __init__(
        self, rank: int, first: TokenChunk, call: GenerateCall, attempt: Attempt, num_samples: int = 1
    ) -> None:
        self.rank = rank
        self._first = first
        self._call = call
        self._attempt = attempt
        self._result = "aborted"
        self._num_samples = num_samples

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        chunk, unfinished = self._first, self._num_samples
        while True:
            unfinished -= chunk.finish_reason is not None
            # What happens to the rank after the last token doesn't matter to this request.
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
            message = await anext(self._call)
        except RankFailedError as error:
            logger.error("rank %d failed: %s", self.rank, error)
            raise EngineFailedError(f"rank {self.rank} failed; its log says why") from None
        except (RankCallError, StopAsyncIteration):
            incomplete = f"rank {self.rank} died while it answered; the answer is incomplete"
            raise RankDiedError(incomplete) from None
        if isinstance(message, Refusal):
            raise message.error
        assert isinstance(message, TokenChunk), message
        return message

    def cancel(self) -> None:
        """Abort the request on its rank, unless it has ended there, and record the result. Call it once.

        The iteration's own end would not do: an iteration that never began has none, and one that was given
        up ends only when it is collected.
        """
        self._call.cancel()
        self._attempt.record_result(self._result)
