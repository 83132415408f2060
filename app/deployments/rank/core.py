"""One rank's engine and its event publisher as one: everything of a rank but Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from functools import partial

import msgspec

from app.deployments.messages import Refusal
from app.engine.interface import RankEngine
from app.errors import KvbeaconError, RequestError
from app.events.publishing.publisher import EventPublisher
from app.events.schema import CacheEvent, LoadStat
from app.events.snapshot import CacheContent, CachedBlock, CacheSnapshot
from app.generation import GenerateRequest, TokenChunk


class RankCore:
    """Serves requests with an engine, whose cache changes and load go out through a publisher.

    The publisher may be replaced while requests run: a replica's number changes, and with it its ports.

    Args:
        engine: not started yet; this stops it.
        rank: the number at first.
        publisher: started already, and closed by its owner after `stop`; None publishes nothing.
    """

    def __init__(self, engine: RankEngine, rank: int, publisher: EventPublisher | None) -> None:
        self._engine = engine
        self._rank = rank
        self._listener = None if publisher is None else _CurrentPublisher(publisher)

    @property
    def rank(self) -> int:
        """The number under which it publishes."""
        return self._rank if self._listener is None else self._listener.publisher.rank

    @property
    def publisher(self) -> EventPublisher | None:
        """The publisher now; None if nothing is published."""
        return None if self._listener is None else self._listener.publisher

    @property
    def load(self) -> LoadStat:
        """The load as last reported, with the number of now."""
        return msgspec.structs.replace(self._engine.load, dp_rank=self.rank)

    def start(self) -> None:
        """Start the engine on the running event loop; the publisher's snapshots are of its cache."""
        if self._listener is not None:
            self._serve_snapshots(self._listener.publisher)
        self._engine.start(self._listener)

    def stop(self) -> None:
        """Stop the engine; a second call does nothing."""
        self._engine.stop()

    async def move(self, rank: int, publisher: EventPublisher | None) -> None:
        """Go on as `rank` with another publisher, started already; the caller closes the last one.

        No event is lost: the new publisher's first batches are all that the cache holds at the moment of
        the change, and every later event goes to it alone. Requests don't notice.

        Raises:
            EngineFailedError: the engine has stopped.
        """
        if self._listener is not None and publisher is not None:
            change = partial(self._change, self._listener, publisher)
            await asyncio.wrap_future(self._engine.content(change))
        self._rank = rank
        self._engine.renumber(rank)

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
            KvbeaconError: nothing is published, so nothing has a number; or another publisher has just
                taken over.
            EngineFailedError: the engine has stopped.
        """
        publisher = self.publisher
        if publisher is None:
            raise KvbeaconError(f"rank {self.rank} publishes no events, so it has no snapshot")
        content = await asyncio.wrap_future(self._take_content(publisher))
        return await asyncio.to_thread(publisher.snapshot, content)

    def _change(
        self, listener: _CurrentPublisher, publisher: EventPublisher, blocks: Sequence[CachedBlock]
    ) -> None:
        """Called where the engine calls its listener, between two changes of the cache."""
        publisher.publish_content(blocks)
        listener.publisher = publisher
        self._serve_snapshots(publisher)

    def _serve_snapshots(self, publisher: EventPublisher) -> None:
        publisher.serve_snapshots(partial(self._take_content, publisher))

    def _take_content(self, publisher: EventPublisher) -> Future[CacheContent]:
        """The cache's content, with its number. The publisher calls this on a thread of its own."""

        def read(blocks: Sequence[CachedBlock]) -> CacheContent:
            if publisher is not self.publisher:
                # The cache has changed since the last batch of that publisher: no number of its is right.
                raise KvbeaconError(f"rank {publisher.rank} has become rank {self.rank}")
            return publisher.content(blocks)

        return self._engine.content(read)


class _CurrentPublisher:
    """An `EngineListener` that hands everything to the publisher of now.

    Attributes:
        publisher: changed only where the engine calls the listener.
    """

    def __init__(self, publisher: EventPublisher) -> None:
        self.publisher = publisher

    def publish(self, events: Sequence[CacheEvent], /) -> None:
        self.publisher.publish(events)

    def publish_load(self, stat: LoadStat, acknowledged: Sequence[str], /) -> None:
        publisher = self.publisher
        if stat.dp_rank != publisher.rank:  # the engine hears of its new number only after the change
            stat = msgspec.structs.replace(stat, dp_rank=publisher.rank)
        publisher.publish_load(stat, acknowledged)
