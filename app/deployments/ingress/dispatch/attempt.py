"""One attempt to serve a request: the call to a rank, its output, and what became of it for the routers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.deployments.messages import NotAddressed, RankMessage, RankReplica, Refusal
from app.errors import EngineFailedError, RankCallError, RankFailedError, RankGoneError
from app.generation import TokenChunk
from app.routing.decisions.decision_log import LostResult, Outcome


class GenerateCall(Protocol):
    """A rank's messages for one request, and the way to abort it there."""

    async def __anext__(self) -> RankMessage:
        """The next message. Raises `RankCallError`; `StopAsyncIteration` when the rank sends no more."""

    def cancel(self) -> None:
        """Abort the request on its rank, unless it has ended there."""


class LostRankError(Exception):
    """An attempt has ended before the request did; another rank may go on.

    Args:
        replica: what was called.
        result: what became of the attempt.
        what: what the rank did, for the message: "rank 1 <what>".
        is_dead: the replica is gone or broken, for other requests too.
        is_planned: the service itself ended the attempt, while the rank could go on with it.
        was_reached: the call reached the replica, so that the request may be what broke it.
    """

    def __init__(
        self,
        replica: RankReplica,
        result: LostResult,
        what: str,
        *,
        is_dead: bool = False,
        is_planned: bool = False,
        was_reached: bool = True,
    ) -> None:
        super().__init__(f"rank {replica.rank} {what}")
        self.replica = replica
        self.result = result
        self.is_dead = is_dead
        self.is_planned = is_planned
        self.was_reached = was_reached

    @property
    def is_failure(self) -> bool:
        """Whether it counts as one of the ranks that a request may lose."""
        return self.was_reached and not self.is_planned


@dataclass(frozen=True, slots=True)
class _Move:
    """Why an attempt goes elsewhere."""

    reason: str
    is_planned: bool


class Attempt:
    """One call to one replica, which begins now. Always close it.

    Args:
        record: takes each outcome; must not wait.
        request_id: the request's.
        replica: what is called.
        call: its messages.
        choice_seq: the number of the choice of this replica, see `ChooseRequest`.
        patience_s: how long the rank may send nothing, in seconds.
        on_end: called with the attempt once, when it is closed or moved.

    Attributes:
        request_id, replica: as given.
        heard_at: when the last message came, or else the attempt began; monotonic seconds.
        has_token: whether a message has come.
    """

    def __init__(
        self,
        record: Callable[[Outcome], None],
        request_id: str,
        replica: RankReplica,
        call: GenerateCall,
        *,
        choice_seq: int,
        patience_s: float,
        on_end: Callable[[Attempt], object],
    ) -> None:
        self.request_id = request_id
        self.replica = replica
        self.has_token = False
        self.heard_at = self._called_at = time.monotonic()
        self._record = record
        self._call = call
        self._choice_seq = choice_seq
        self._patience_s = patience_s
        self._on_end = on_end
        self._ttft_s: float | None = None
        self._cached_tokens: int | None = None
        self._waiting: asyncio.Timeout | None = None
        self._move: _Move | None = None
        self._is_closed = False

    @property
    def rank(self) -> int:
        """The number that the replica had when it was chosen."""
        return self.replica.rank

    async def next_chunk(self) -> TokenChunk:
        """The next tokens.

        Raises:
            LostRankError: there will be none here: the rank was lost, or the attempt was moved.
            RequestError: the rank refuses the request, or can't compute it.
        """
        message = await self._next_message()
        if isinstance(message, Refusal):
            if isinstance(message.error, EngineFailedError):
                # The rank lives, but its engine doesn't, or can't serve now.
                raise self._lost("died", f"failed ({message.error.message})", is_dead=True)
            raise message.error
        if isinstance(message, NotAddressed):
            raise LostRankError(self.replica, "died", "was gone already", is_dead=True, was_reached=False)
        self.heard_at = time.monotonic()
        if not self.has_token:
            self.has_token = True
            self._ttft_s = self.heard_at - self._called_at
            self._cached_tokens = message.num_cached_tokens
            self._record_result("answering")
        return message

    async def _next_message(self) -> RankMessage:
        if self._move is None:
            try:
                async with asyncio.timeout(self._patience_s) as self._waiting:
                    return await anext(self._call)
            except (RankCallError, StopAsyncIteration, TimeoutError) as error:
                # What a call that was cancelled raises may have hidden that this task was cancelled too.
                if _is_cancelled():
                    raise asyncio.CancelledError from None
                if self._move is None:
                    raise self._lost_by(error) from error
            finally:
                self._waiting = None
        raise self._lost("moved", f"was left ({self._move.reason})", is_planned=self._move.is_planned)

    def _lost_by(self, error: Exception) -> LostRankError:
        if isinstance(error, TimeoutError):
            return self._lost("silent", f"sent nothing for {self._patience_s:.0f} s")
        if isinstance(error, RankGoneError | StopAsyncIteration):
            return self._lost("died", "died", is_dead=True)
        if isinstance(error, RankFailedError):
            return self._lost("broke_off", "failed, and its log says why")
        return self._lost("broke_off", "broke off the call")

    def _lost(
        self, result: LostResult, what: str, *, is_dead: bool = False, is_planned: bool = False
    ) -> LostRankError:
        return LostRankError(self.replica, result, what, is_dead=is_dead, is_planned=is_planned)

    def move(self, reason: str, *, planned: bool = False) -> None:
        """Have the request leave this replica now, and go on at another one; does nothing after its end.

        The call is cancelled at once. The reader of its tokens gets a `LostRankError`, now or as soon as
        it asks for more, and looks for another rank.

        Args:
            reason: why, for people to read: "rank 1 was left (<reason>)".
            planned: the rank itself could go on: this isn't counted as a failure of the request's.
        """
        if self._move is not None or self._is_closed:
            return
        self._move = _Move(reason, planned)
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())
        self._call.cancel()
        self._on_end(self)

    def close(self, result: str) -> None:
        """Abort the request on its rank, unless it has ended there, and record the result; only once."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._move is None:
            self._call.cancel()
            self._on_end(self)
        self._record_result(result)

    def _record_result(self, result: str) -> None:
        self._record(
            Outcome(self.request_id, self.rank, result, self._ttft_s, self._choice_seq, self._cached_tokens)
        )


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
