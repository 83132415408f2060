"""Follows one worker's rank: its cache events through a relay, its load reports where it publishes some."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from app.engine.interface import Result
from app.engine.relay.cached_hashes import CachedHashes
from app.engine.relay.feed import Flush, ForeignFeed
from app.engine.relay.feed_status import FeedStatus, ForeignPublisher
from app.engine.relay.relay import HashKind, Relay
from app.engine.remote.load import RemoteLoad
from app.engine.remote.worker import Publisher, WorkerDescription
from app.events.following.connection import subscriber_context
from app.events.following.load_subscriber import LoadSubscriber
from app.events.schema import CacheEvent, LoadStat
from app.events.snapshot import CachedBlock

logger = logging.getLogger(__name__)

Publish = Callable[[Sequence[CacheEvent]], object]


class RankFollower:
    """Follows whatever publisher the worker has now. All of it, but `content`, on the event loop.

    Args:
        name: of the worker's rank, for the log.
        block_size: tokens of a block of ours.
        load: takes the worker's reports.
        publish: takes our events, in order.
        on_load: called after each report.
        flush: empties the worker's cache at an adoption that can't know all of it; None: that isn't allowed.
    """

    def __init__(
        self,
        name: str,
        block_size: int,
        load: RemoteLoad,
        *,
        publish: Publish,
        on_load: Callable[[], object],
        flush: Flush | None,
    ) -> None:
        self._name = name
        self._block_size = block_size
        self._load = load
        self._publish = publish
        self._on_load = on_load
        self._flush = flush
        self._cached = CachedHashes(block_size)
        self._publisher: Publisher | None = None
        self._hash_kind: HashKind = "opaque"
        self._missing = "the worker isn't known yet"
        self._relay: Relay | None = None
        self._feed: ForeignFeed | None = None
        self._load_subscriber: LoadSubscriber | None = None

    @property
    def num_cached_blocks(self) -> int:
        """Blocks of ours that a new prompt could hit, as far as is known."""
        return len(self._cached)

    @property
    def feed_status(self) -> FeedStatus | None:
        """How the worker's events are followed, and what came of them; None: there are none to follow."""
        return None if self._feed is None else self._feed.status

    @property
    def partial(self) -> str | None:
        """Why the worker's cache may hold more than is known; None: all of it is known."""
        status = self.feed_status
        if status is None:
            return self._missing
        return None if status.state == "whole" else f"{status.state}: {status.reason}"

    def num_cached_tokens(self, token_ids: Sequence[int], cache_salt: str | None) -> int:
        """How many tokens at the beginning of a prompt are known to be cached."""
        return self._cached.num_cached_tokens(token_ids, cache_salt)

    def add_salt(self, cache_salt: str) -> None:
        """A request with this salt goes to the worker, whose events may not say it."""
        if self._relay is not None:
            self._relay.add_salt(cache_salt)

    def content(self, read: Callable[[Sequence[CachedBlock]], Result]) -> Future[Result]:
        """See `RankEngine`; may be called from any thread."""
        feed = self._feed
        if feed is not None:
            return feed.content(read)
        future: Future[Result] = Future()
        try:
            future.set_result(read(()))
        except Exception as error:
            future.set_exception(error)
        return future

    async def follow(self, worker: WorkerDescription, dp_rank: int) -> None:
        """From now on follow `worker`, whose rank is `dp_rank`; what is followed already goes on.

        Raises nothing: where there is nothing to follow, `partial` says why.
        """
        hashes: HashKind = "opaque" if worker.kind == "vllm" else "chained"
        if self._feed is not None and (worker.publisher, hashes) == (self._publisher, self._hash_kind):
            return
        await self.close()
        publisher, self._hash_kind = worker.publisher, hashes
        self._publisher = publisher
        if publisher is None or publisher.is_encrypted:
            encrypted = "its events are encrypted, and there is no key for them here"
            self._missing = worker.no_publisher if publisher is None else encrypted
            logger.warning("%s: nothing is known of its cache: %s", self._name, self._missing)
            return
        self._relay = Relay(self._block_size, hashes=hashes, source=self._name)
        address = ForeignPublisher(publisher.events, publisher.replay, publisher.topic)
        self._feed = ForeignFeed(address, self._relay, self._take_events, name=self._name, flush=self._flush)
        self._feed.start()
        self._follow_load(publisher, dp_rank)

    def _follow_load(self, publisher: Publisher, dp_rank: int) -> None:
        if publisher.load is None or publisher.load_topic is None:
            return
        self._load_subscriber = LoadSubscriber(
            subscriber_context(),
            publisher.load,
            rank=dp_rank,
            topic=publisher.load_topic,
            on_load=self._take_load,
            on_acknowledged=self._load.acknowledge,
        )
        self._load_subscriber.start()

    async def close(self) -> None:
        """Follow nothing, and publish that nothing is known; a second call does nothing."""
        feed, relay, self._relay = self._feed, self._relay, None
        subscriber, self._load_subscriber = self._load_subscriber, None
        closing = [each.close() for each in (feed, subscriber) if each is not None]
        await asyncio.gather(*closing)
        if feed is not None and relay is not None:
            # Under the relay's lock: no snapshot has the blocks with a number after their end.
            feed.content(lambda _: self._take_events(relay.clear())).result()
        self._feed = None

    def _take_events(self, events: Sequence[CacheEvent]) -> None:
        self._cached.apply(events)
        if events:
            self._publish(events)

    def _take_load(self, stat: LoadStat) -> None:
        self._load.report(stat)
        self._on_load()
