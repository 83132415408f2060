"""A dispatcher between routers and ranks that are fakes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from app.deployments.ingress.dispatch.dispatcher import Dispatcher
from app.deployments.ingress.dispatch.rank_search import SearchLimits
from app.deployments.messages import Assignment, RankReplica
from app.generation import GenerateRequest, SamplingParams, TokenChunk
from app.routing.decisions.decision_log import Outcome
from tests.support.fake_deployments import FakeCall, FakeRanks, FakeRouters, RankStep, RouterAnswer

BLOCK_SIZE = 4
FIRST, LAST = TokenChunk([7], 9, 4), TokenChunk([8], 9, 4, "stop")
A, B = RankReplica(0, "a"), RankReplica(1, "b")
RANKS = [Assignment(0, "a"), Assignment(1, "b"), Assignment(2, "c")]
REQUEST = GenerateRequest("r", list(range(9)), SamplingParams(2))


class Rig:
    """A dispatcher, its routers and ranks, and the outcomes that it recorded.

    Args:
        choices: the routers' answers, one after another.
        calls: what each replica sends.
        limits: of the search.
        options: of the dispatcher.
    """

    def __init__(
        self,
        choices: Iterable[RouterAnswer],
        calls: Mapping[str, Iterable[RankStep]],
        limits: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.calls = {replica_id: FakeCall(script) for replica_id, script in calls.items()}
        self.routers = FakeRouters(choices)
        self.ranks = FakeRanks(self.calls)
        self.outcomes: list[Outcome] = []
        allowed: dict[str, Any] = {"max_retries": 3, "rank_wait_s": 0.0, "pause_s": 0.0, **(limits or {})}
        self.dispatcher = Dispatcher(
            self.routers,
            self.ranks,
            self.outcomes.append,
            block_size=BLOCK_SIZE,
            limits=SearchLimits(**allowed),
            **{"router_retry_s": 0.0, **options},
        )

    async def tokens(
        self, request: GenerateRequest = REQUEST, pinned_rank: int | None = None
    ) -> tuple[int, list[int]]:
        """The rank that began to answer the request, and the tokens that came."""
        stream = await self.dispatcher.start(request, pinned_rank, None)
        try:
            return stream.rank, [token_id async for chunk in stream for token_id in chunk.token_ids]
        finally:
            stream.cancel()

    @property
    def results(self) -> list[tuple[int, str]]:
        """Every outcome's rank and result, in the order in which they were recorded."""
        return [(outcome.rank, outcome.result) for outcome in self.outcomes]

    @property
    def cancelled(self) -> dict[str, int]:
        """How often each replica's call was cancelled."""
        return {replica_id: call.num_cancelled for replica_id, call in self.calls.items()}

    async def is_released(self) -> bool:
        """Waits for a release, without which this would not return; whether it is the only one."""
        return await self.routers.released.get() == "r" and self.routers.released.empty()
