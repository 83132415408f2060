"""One rank's engine and its event publisher as one: everything of a rank but Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from functools import partial

from app.deployments.messages import Refusal
from app.engine.interface import RankEngine
from app.errors import KvbeaconError, RequestError
from app.events.publishing.publisher import EventPublisher
from app.events.snapshot import CacheContent, CacheSnapshot
from app.generation import GenerateRequest, TokenChunk


class RankCore:
    """Serves requests with an engine, whose cache changes and load go out through a publisher.

    Args:
        engine: not started yet; this stops it.
        publisher: started already, and closed by its owner after `stop`; None publishes nothing.
    """

    def __init__(self, engine: RankEngine, publisher: EventPublisher | None) -> None:
        self._engine = engine
        self._publisher = publisher

    def start(self) -> None:
        """Start the engine on the running event loop; the publisher's snapshots are of its cache."""
        if self._publisher is not None:
            self._publisher.serve_snapshots(partial(self._take_content, self._publisher))
        self._engine.start(self._publisher)

    def stop(self) -> None:
        """Stop the engine; a second call does nothing."""
        self._engine.stop()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenChunk | Refusal]:
        """The output of the request's samples, a message for each that a step adds to; a refusal ends it.

        Leaving the iteration early aborts the request and frees its blocks.
        """
        try:
            await self._engine.prepare(request.params)
            admitted = self._engine.admit(request)
            try:
                async for chunk in admitted:
                    yield chunk
            finally:
                admitted.abort()
        except RequestError as error:
            yield Refusal(error)

    async def snapshot(self) -> CacheSnapshot:
        """The whole cache content at a known sequence number.

        Raises:
            KvbeaconError: nothing is published, so nothing has a number.
            EngineFailedError: the engine has stopped.
        """
        if self._publisher is None:
            rank = self._engine.load.dp_rank
            raise KvbeaconError(f"rank {rank} publishes no events, so it has no snapshot")
        content = await asyncio.wrap_future(self._take_content(self._publisher))
        return await asyncio.to_thread(self._publisher.snapshot, content)

    def _take_content(self, publisher: EventPublisher) -> Future[CacheContent]:
        """The cache's content, with its number. The publisher calls this on a thread of its own."""
        return self._engine.content(publisher.content)
