"""What a rank's load port says, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from tests.support.engine.live_engine import LONG
from tests.support.engine.live_rank import LiveRank, refusal


class LoadSubscriber:
    """A SUB socket at the load port: everything it says, in order."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket

    async def next(self, topic: bytes) -> list[Any]:
        """The payload of the next message under `topic`."""
        async with asyncio.timeout(10):
            while True:
                received, _, payload = await self._socket.recv_multipart()
                if received == topic:
                    message: list[Any] = msgspec.msgpack.decode(payload)
                    return message


@pytest.fixture
async def subscriber(publishing_rank: LiveRank) -> AsyncIterator[LoadSubscriber]:
    """Connected: it has received a first heartbeat."""
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe(b"")
        socket.connect(f"tcp://127.0.0.1:{publishing_rank.port('load_port')}")
        subscriber = LoadSubscriber(socket)
        await subscriber.next(b"load")
        yield subscriber


async def test_an_idle_rank_reports_its_load_once_a_second(subscriber: LoadSubscriber) -> None:
    started = time.monotonic()
    reports = [await subscriber.next(b"load") for _ in range(2)]
    assert 0.5 < time.monotonic() - started < 5
    assert [report[:4] for report in reports] == [["LoadStat", 0, 0, 0]] * 2


async def test_an_admission_is_reported_at_once_and_acknowledged(
    publishing_rank: LiveRank, subscriber: LoadSubscriber
) -> None:
    stream = publishing_rank.generate(params=LONG, request_id="mine")
    await anext(stream)
    report = await subscriber.next(b"load")
    assert report[1] + report[2] == 1, "running or waiting"
    assert await subscriber.next(b"ack") == [0, ["mine"]]
    await stream.aclose()
    while (report := await subscriber.next(b"load"))[1:4] != [0, 0, 0]:
        pass
    assert report[9] == 5, "prompt tokens computed"
    assert report[10] > 0, "microseconds spent on them"


async def test_a_refused_request_is_acknowledged_too(
    publishing_rank: LiveRank, subscriber: LoadSubscriber
) -> None:
    await refusal(publishing_rank.generate([512], request_id="refused"))
    assert await subscriber.next(b"ack") == [0, ["refused"]]


async def test_a_request_that_is_refused_for_its_id_is_acknowledged_too(
    publishing_rank: LiveRank, subscriber: LoadSubscriber
) -> None:
    stream = publishing_rank.generate(params=LONG, request_id="mine")
    await anext(stream)
    assert await subscriber.next(b"ack") == [0, ["mine"]]
    await refusal(publishing_rank.generate(request_id="mine"))
    assert await subscriber.next(b"ack") == [0, ["mine"]]
    await stream.aclose()
