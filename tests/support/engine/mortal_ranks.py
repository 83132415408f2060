"""Real engines and real routing in one process, whose calls break off where a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from app.deployments.ingress.dispatch.attempt import Attempt
from app.deployments.ingress.dispatch.dispatcher import Dispatcher
from app.deployments.ingress.dispatch.rank_search import SearchLimits
from app.deployments.messages import Assignment, ChooseRequest, Json, RankMessage, Refusal
from app.deployments.rank.core import RankCore
from app.engine.torch.engine import Engine
from app.engine.torch.engine_thread import EngineThread
from app.errors import EngineFailedError, QueueFullError, RankCallError, RankGoneError
from app.events.schema import CacheEvent, LoadStat
from app.generation import GenerateRequest, TokenChunk, TokenLogprobs
from app.routing.core import RoutingCore
from app.routing.decisions.decision import Prompt
from app.routing.decisions.decision_log import Outcome
from tests.support.deadlines import until
from tests.support.engine.tiny_engine import BLOCK
from tests.support.routing.cores import new_core

Fate = Literal["gone", "ends", "engine fails", "breaks off", "moved", "drained", "full"]
FATES: tuple[Fate, ...] = ("gone", "ends", "engine fails", "breaks off", "moved", "drained", "full")
"""`full` is only possible before the first token."""


@dataclass
class Break:
    """A call's end: after so many messages, and how."""

    num_messages: int
    fate: Fate


class MortalCall:
    """One call to a real engine, which breaks off as it is planned; None: it doesn't."""

    def __init__(
        self, messages: AsyncGenerator[RankMessage], planned: Break | None, move: Callable[[bool], None]
    ) -> None:
        self._messages = messages
        self._planned = planned
        self._move = move
        self._num_messages = 0
        self._closing: asyncio.Task[None] | None = None

    async def __anext__(self) -> RankMessage:
        planned = self._planned
        if planned is not None and self._num_messages == planned.num_messages:
            match planned.fate:
                case "gone":
                    raise RankGoneError("killed")
                case "ends":
                    raise StopAsyncIteration
                case "engine fails":
                    return Refusal(EngineFailedError("broke"))
                case "breaks off":
                    raise RankCallError("broke off")
                case "full":
                    self._planned = None
                    return Refusal(QueueFullError("full"))
                case "moved" | "drained":
                    self._planned = None
                    self._move(planned.fate == "drained")
                    await asyncio.Event().wait()
        message = await anext(self._messages)
        self._num_messages += 1
        return message

    def cancel(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())

    async def _close(self) -> None:
        while True:
            try:
                await self._messages.aclose()
                return
            except RuntimeError:  # its reader is still being cancelled
                await asyncio.sleep(0)


class Listener:
    """Has the routing core know what an engine acknowledges."""

    def __init__(self, rank: int, core: RoutingCore) -> None:
        self._rank = rank
        self._core = core
        self._loop = asyncio.get_running_loop()

    def publish(self, events: Sequence[CacheEvent], /) -> None:
        pass

    def publish_load(self, stat: LoadStat, acknowledged: Sequence[str], /) -> None:
        self._loop.call_soon_threadsafe(self._core.reservations.acknowledge, self._rank, list(acknowledged))


class CoreRouters:
    """One router's core. A rank that is marked failed is there again at once, as if it had been replaced."""

    def __init__(self, core: RoutingCore) -> None:
        self._core = core
        self.asked: list[ChooseRequest] = []

    async def choose(self, request: ChooseRequest) -> Assignment:
        self.asked.append(request)
        decision = self._core.choose(
            Prompt(
                request.request_id,
                request.block_hashes,
                request.num_tokens,
                BLOCK,
                choice_seq=request.choice_seq,
            ),
            now=0.0,
            exclude=frozenset(each.rank for each in request.exclude),
            pinned_rank=request.pinned_rank,
        )
        return Assignment(decision.rank, str(decision.rank), decision.predicted_ttft_s)

    async def explain(self, request: ChooseRequest) -> Json:
        raise NotImplementedError

    async def mark_failed(self, rank: int, replica_id: str) -> None:
        self._core.reservations.drop(rank)

    async def release(self, request_id: str) -> None:
        self._core.reservations.release(request_id)


@dataclass
class Answer:
    """What a client got of one request; what belongs to a sample is by its index."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    prompt_numbers: set[tuple[int, int]] = field(default_factory=set)
    num_chunks: int = 0

    def take(self, chunk: TokenChunk) -> None:
        assert chunk.index not in self.finish_reasons, "tokens of a sample that has ended"
        self.num_chunks += 1
        self.tokens.setdefault(chunk.index, []).extend(chunk.token_ids)
        if chunk.logprobs is not None:
            assert len(chunk.logprobs) == len(chunk.token_ids)
            self.logprobs.setdefault(chunk.index, []).extend(chunk.logprobs)
        self.prompt_numbers.add((chunk.num_prompt_tokens, chunk.num_cached_tokens))
        if chunk.finish_reason is not None:
            self.finish_reasons[chunk.index] = chunk.finish_reason


class MortalRanks:
    """A dispatcher over real engines, each on a thread of its own, and a real routing core.

    Args:
        engines: one per rank.
        max_retries: of a request.

    Attributes:
        breaks: taken by the calls, one each, as they are made; None or no more: the call is whole.
        outcomes: of all attempts.
        calls: the requests as ranks got them.
    """

    def __init__(self, engines: Sequence[Engine], *, max_retries: int = 100) -> None:
        self.breaks: Iterator[Break | None] = iter(())
        self.outcomes: list[Outcome] = []
        self.calls: list[GenerateRequest] = []
        self.core = new_core(dp_size=len(engines))
        self.routers = CoreRouters(self.core)
        self.dispatcher = Dispatcher(
            self.routers,
            self,
            self.outcomes.append,
            block_size=BLOCK,
            limits=SearchLimits(max_retries, rank_wait_s=5.0, pause_s=0.001),
        )
        self._threads = [EngineThread(engine, rank) for rank, engine in enumerate(engines)]
        self._cores = [RankCore(thread, rank, None) for rank, thread in enumerate(self._threads)]
        for rank, thread in enumerate(self._threads):
            thread.start(Listener(rank, self.core))

    def generate(self, request: GenerateRequest, *, replica_id: str) -> MortalCall:
        self.calls.append(request)

        def move(planned: bool) -> None:
            (attempt,) = self.attempts_of(request.request_id)
            attempt.move("the test moves it", planned=planned)

        messages = self._cores[int(replica_id)].generate(request)
        return MortalCall(messages, next(self.breaks, None), move)

    def attempts_of(self, request_id: str) -> list[Attempt]:
        """The live attempts of a request: one at most."""
        return [attempt for attempt in self.dispatcher.live if attempt.request_id == request_id]

    async def answer(self, request: GenerateRequest, pinned_rank: int | None = None) -> Answer:
        """The whole answer to a request."""
        answer = Answer()
        stream = await self.dispatcher.start(request, pinned_rank, None)
        try:
            async for chunk in stream:
                answer.take(chunk)
        finally:
            stream.cancel()
        return answer

    async def check_idle(self) -> None:
        """Nothing is left behind: no attempt, no reservation, nothing on any engine."""

        async def is_idle() -> bool:
            loads = [
                await asyncio.wrap_future(each.submit(lambda engine: engine.load_stat(0)))
                for each in self._threads
            ]
            held = [(load.num_running_reqs, load.num_waiting_reqs, load.num_tokens) for load in loads]
            return (
                held == [(0, 0, 0)] * len(held)
                and len(self.dispatcher.live) == 0
                and len(self.core.reservations) == 0
            )

        await until(is_idle, "idle ranks and no reservation")
        self.core.check_integrity()
        for thread in self._threads:
            await asyncio.wrap_future(thread.submit(lambda engine: engine.check_integrity()))

    def stop(self) -> None:
        """Stop the engines."""
        for core in self._cores:
            core.stop()


@asynccontextmanager
async def mortal_ranks(engines: Sequence[Engine], *, max_retries: int = 100) -> AsyncIterator[MortalRanks]:
    """Ranks that are idle at the end, and then stopped."""
    ranks = MortalRanks(engines, max_retries=max_retries)
    try:
        yield ranks
        await ranks.check_idle()
    finally:
        ranks.stop()
