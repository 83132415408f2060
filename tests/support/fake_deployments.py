"""Routers and ranks as the dispatcher sees them, without Ray: what they answer is written down beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from app.deployments.ingress.dispatch.dispatcher import Dispatcher
from app.deployments.ingress.dispatch.rank_search import SearchLimits
from app.deployments.ingress.dispatch.rank_stream import RankStream
from app.deployments.messages import Assignment, ChooseRequest, Json, RankMessage
from app.generation import GenerateRequest, SamplingParams
from app.routing.decisions.decision_log import Outcome


class Silence:
    """An answer that never comes; `begun` is set once it is waited for."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def wait(self) -> None:
        self.begun.set()
        await asyncio.Event().wait()


RankStep = RankMessage | Exception | Silence
RouterAnswer = Assignment | Exception | Silence


class FakeCall:
    """One `generate` call: sends its messages, raises its errors, and ends after the last.

    Attributes:
        num_cancelled: how often it was cancelled.
    """

    def __init__(self, script: Iterable[RankStep]) -> None:
        self._script: Final = iter(script)
        self.num_cancelled = 0

    async def __anext__(self) -> RankMessage:
        for step in self._script:
            if isinstance(step, Exception):
                raise step
            if not isinstance(step, Silence):
                return step
            await step.wait()
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.num_cancelled += 1


class FakeRanks:
    """Ranks that answer one call each.

    Args:
        calls: by replica id.

    Attributes:
        requests: what was started, and on which replica.
    """

    def __init__(self, calls: Mapping[str, FakeCall]) -> None:
        self._calls = calls
        self.requests: list[tuple[GenerateRequest, str]] = []

    def generate(self, request: GenerateRequest, *, replica_id: str) -> FakeCall:
        self.requests.append((request, replica_id))
        return self._calls[replica_id]


class FakeRouters:
    """Routers that answer one after another.

    Args:
        answers: to `choose` and `explain`, in order.

    Attributes:
        asked: their requests.
        failed: what `mark_failed` was called with.
        released: request ids, as they are released.
    """

    def __init__(self, answers: Iterable[RouterAnswer] = ()) -> None:
        self._answers = iter(answers)
        self.asked: list[ChooseRequest] = []
        self.failed: list[tuple[int, str]] = []
        self.released: asyncio.Queue[str] = asyncio.Queue()

    async def choose(self, request: ChooseRequest) -> Assignment:
        self.asked.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Silence):
            await answer.wait()
            raise AssertionError("a silence has no end")
        return answer

    async def explain(self, request: ChooseRequest) -> Json:
        assignment = await self.choose(request)
        return {"winner": assignment.rank}

    async def mark_failed(self, rank: int, replica_id: str) -> None:
        self.failed.append((rank, replica_id))

    async def release(self, request_id: str) -> None:
        self.released.put_nowait(request_id)


class Begun(NamedTuple):
    """A stream whose first message has come, the call that it reads, and its results as they are recorded."""

    stream: RankStream
    call: FakeCall
    results: list[str]


async def begun(messages: Iterable[RankStep], num_samples: int = 1) -> Begun:
    """The stream of these messages, from rank 1, which is the only one."""
    call, results = FakeCall(messages), list[str]()

    def record(outcome: Outcome) -> None:
        if outcome.result != "answering":
            results.append(outcome.result)

    routers, ranks = FakeRouters([Assignment(1, "only")]), FakeRanks({"only": call})
    limits = SearchLimits(max_retries=0, rank_wait_s=0.0)
    dispatcher = Dispatcher(routers, ranks, record, block_size=4, limits=limits)
    request = GenerateRequest("r", list(range(20)), SamplingParams(1000), n=num_samples)
    return Begun(await dispatcher.start(request, None, None), call, results)
