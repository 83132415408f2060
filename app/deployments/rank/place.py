"""Where a rank publishes: the ports of its number, and the publisher that moves to those of another."""

from __future__ import annotations

import asyncio
import logging

from app.config import AppConfig
from app.deployments.rank.core import RankCore
from app.errors import EndpointInUseError
from app.events.config import KvEventsConfig
from app.events.endpoints import KvEvents
from app.events.publishing.publisher import EventPublisher

logger = logging.getLogger("ray.serve")

BIND_TIMEOUT_S = 5.0
"""At a replica's start: the last owner of a port may still be going away."""


class RankPlace:
    """One replica's publisher, under the number that the replica holds.

    Args:
        config: the whole deployment's.
        events: what its `kv_events_config` asks for.

    Attributes:
        core: told of every move; None until the engine is there.
    """

    def __init__(self, config: AppConfig, events: KvEvents) -> None:
        self.core: RankCore | None = None
        self._config = events.config
        self._dp_size = config.largest_dp_size
        self._block_size = config.engine.cache.block_size
        self._publisher: EventPublisher | None = None

    @property
    def publisher(self) -> EventPublisher | None:
        """The publisher now; None if nothing is published."""
        return self._publisher

    def ports_of(self, number: int) -> frozenset[int]:
        """See `Place`."""
        return frozenset() if self._config is None else self._new(self._config, number).ports

    async def open(self, number: int, *, at_once: bool) -> frozenset[int]:
        """See `Place`.

        Raises:
            EndpointInUseError: a port is taken; nothing has changed.
            ConfigError: an address can't be bound here.
            EngineFailedError: the engine has stopped.
        """
        publisher = None if self._config is None else await self._start(self._config, number, at_once)
        last = self._publisher
        if self.core is not None:
            try:
                await self.core.move(number, publisher)
            except BaseException:
                if publisher is not None:
                    publisher.close()
                raise
        self._publisher = publisher
        if last is not None:
            await asyncio.to_thread(last.close)
        return frozenset() if publisher is None else publisher.ports

    def close(self) -> None:
        """Send what is queued, and close; a second call does nothing."""
        if self._publisher is not None:
            self._publisher.close()

    async def _start(self, config: KvEventsConfig, number: int, at_once: bool) -> EventPublisher:
        is_surplus = number >= self._dp_size
        publisher = self._new(config, number, bind_timeout_s=0.0 if at_once or is_surplus else BIND_TIMEOUT_S)
        try:
            await asyncio.to_thread(publisher.start)
        except EndpointInUseError as error:
            if not is_surplus:
                raise
            logger.warning("%s; the system chooses its ports while it is rank %d", error, number)
            publisher = self._new(config, number, planned=False)
            await asyncio.to_thread(publisher.start)
        return publisher

    def _new(
        self, config: KvEventsConfig, number: int, *, planned: bool = True, bind_timeout_s: float = 0.0
    ) -> EventPublisher:
        return EventPublisher(
            config,
            dp_rank=number,
            dp_size=self._dp_size,
            block_size=self._block_size,
            planned=planned,
            bind_timeout_s=bind_timeout_s,
        )
