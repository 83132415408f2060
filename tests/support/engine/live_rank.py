"""Everything of a DP rank but Ray: an engine on its thread, its publisher, and both as one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from app.deployments.messages import Refusal
from app.deployments.rank.core import RankCore
from app.engine.torch.engine import Engine
from app.engine.torch.engine_thread import EngineThread
from app.events.config import KvEventsConfig
from app.events.publishing.publisher import EventPublisher
from app.generation import TokenChunk
from tests.support.engine.live_engine import LiveEngine, new_request
from tests.support.free_ports import find_free_ports


def new_publisher(block_size: int, **options: Any) -> EventPublisher:
    """A started publisher of events, replays and load reports, on ports of its own.

    Args:
        options: more of `KvEventsConfig`.
    """
    base = find_free_ports(6)
    config = KvEventsConfig(
        publisher="zmq",
        endpoint=f"tcp://127.0.0.1:{base}",
        replay_endpoint=f"tcp://127.0.0.1:{base + 2}",
        **options,
    )
    publisher = EventPublisher(config, dp_rank=0, dp_size=1, block_size=block_size)
    publisher.start()
    return publisher


class LiveRank(LiveEngine):
    """A rank 0, running from its construction to `stop`. Without a publisher it publishes nothing."""

    def __init__(self, engine: Engine, publisher: EventPublisher | None = None) -> None:
        super().__init__(EngineThread(engine, dp_rank=0))
        self.core = RankCore(self.thread, 0, publisher)
        self._publisher = publisher
        self.core.start()

    @property
    def publisher(self) -> EventPublisher:
        """The publisher, which it has."""
        assert self._publisher is not None
        return self._publisher

    def stop(self) -> None:
        """Stop the engine, then the publisher."""
        self.core.stop()
        if self._publisher is not None:
            self._publisher.close()

    def port(self, name: str) -> int:
        """The publisher's `event_port`, `replay_port` or `load_port`."""
        port: int = self.publisher.info("127.0.0.1").as_json()[name]
        return port

    def generate(self, *prompt_and_params: Any, **fields: Any) -> AsyncGenerator[TokenChunk | Refusal]:
        """What the rank answers a new request; the arguments are `new_request`'s after the id."""
        request_id = fields.pop("request_id", None) or self.new_id()
        return self.core.generate(new_request(request_id, *prompt_and_params, **fields))


async def answer(stream: AsyncIterator[TokenChunk | Refusal]) -> list[TokenChunk]:
    """The chunks of a request that isn't refused."""
    messages = [message async for message in stream]
    chunks = [message for message in messages if isinstance(message, TokenChunk)]
    assert len(chunks) == len(messages), messages
    return chunks


async def refusal(stream: AsyncIterator[TokenChunk | Refusal]) -> Refusal:
    """The only message of a request that is refused."""
    (message,) = [message async for message in stream]
    assert isinstance(message, Refusal)
    return message
