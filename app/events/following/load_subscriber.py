"""Follows the load reports and acknowledgements of one rank."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq.asyncio

from app.errors import WireError
from app.events.bad_messages import BadMessages
from app.events.curve import CurveClient
from app.events.following.connection import Connection
from app.events.schema import (
    ACK_TOPIC,
    LoadStat,
    decode_acknowledged,
    decode_load,
    split_message,
)

logger = logging.getLogger(__name__)

_BURST = 256
_RECONNECT_S = 2.0


class LoadSubscriber:
    """Calls `on_load` and `on_acknowledged` with what the rank at `address` reports.

    Reports replace each other, so a lost one needs no recovery: the next is at most a second away. After a
    failed handshake it connects again: ZMQ by itself would never do so, or ten times a second.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        address: str,
        *,
        rank: int,
        topic: str,
        on_load: Callable[[LoadStat], object],
        on_acknowledged: Callable[[Sequence[str]], object],
        curve: CurveClient | None = None,
    ) -> None:
        """Begins to connect; `curve` None connects without encryption."""
        self._context = context
        self._address = address
        self._curve = curve
        self._rank = rank
        self._topic = topic.encode()
        self._on_load = on_load
        self._on_acknowledged = on_acknowledged
        self._bad = BadMessages(logger, f"rank {rank}'s load reports at {address}")
        self._connection = self._connect()
        self._task: asyncio.Task[None] | None = None

    @property
    def bad_messages(self) -> int:
        """Messages that were no report or acknowledgement of this rank."""
        return self._bad.count

    def start(self) -> None:
        """Follow until `close`."""
        self._task = asyncio.create_task(self._run(), name=f"load-of-rank-{self._rank}")

    async def close(self) -> None:
        """Stop and close the socket."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._connection.close()

    async def _run(self) -> None:
        wake = asyncio.Event()
        while True:
            self._connection.notify(wake.set)
            await wake.wait()
            wake.clear()
            while messages := self._connection.receive(_BURST):
                for frames in messages:
                    self._on_message(frames)
                await asyncio.sleep(0)
            if self._connection.handshake_failed():
                self._connection.close()
                await asyncio.sleep(_RECONNECT_S)
                self._connection = self._connect()

    def _connect(self) -> Connection:
        return Connection(self._context, self._address, (self._topic, ACK_TOPIC), self._curve)

    def _on_message(self, frames: Sequence[bytes]) -> None:
        try:
            topic, _, payload = split_message(frames)
            if topic == ACK_TOPIC:
                acknowledged = decode_acknowledged(payload)
                self._check_rank(acknowledged.dp_rank)
                self._on_acknowledged(acknowledged.request_ids)
            elif topic == self._topic:
                stat = decode_load(payload)
                self._check_rank(stat.dp_rank)
                self._on_load(stat)
            else:
                raise WireError(f"topic {topic!r}; subscribed to {self._topic!r} and {ACK_TOPIC!r}")
        except WireError as error:
            self._bad.add(error)
        except Exception:
            logger.exception("a load report of rank %d could not be applied", self._rank)

    def _check_rank(self, dp_rank: int) -> None:
        if dp_rank != self._rank:
            raise WireError(f"report of rank {dp_rank}; rank {self._rank} is followed here")
