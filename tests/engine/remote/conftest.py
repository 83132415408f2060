"""Workers and the remote engines that are in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app.engine.remote.engine import RemoteEngine
from app.engine.remote.worker import Expected, RemoteRank
from tests.support.deadlines import until
from tests.support.engine.live_rank import LiveRank, new_publisher
from tests.support.engine.live_worker import LiveWorker
from tests.support.engine.recorded import Recorded
from tests.support.engine.tiny_engine import BLOCK, tiny_engine

NewWorker = Callable[..., Awaitable[LiveWorker]]
NewRemote = Callable[..., RemoteEngine]


@pytest.fixture
async def new_worker(tiny_llama_dir: Path) -> AsyncIterator[NewWorker]:
    """Starts a worker; keywords are `LiveWorker`'s, `is_started` False leaves that to the test.

    It keeps the last `buffer_steps` batches of events for replays.
    """
    workers: list[LiveWorker] = []

    async def start(*, is_started: bool = True, buffer_steps: int = 1000, **options: Any) -> LiveWorker:
        publisher = new_publisher(BLOCK, buffer_steps=buffer_steps)
        worker = LiveWorker(LiveRank(tiny_engine(tiny_llama_dir), publisher), **options)
        workers.append(worker)
        if is_started:
            await worker.start()
        return worker

    yield start
    for worker in workers:
        await worker.stop()


@pytest.fixture
async def new_remote(tiny_llama_dir: Path) -> AsyncIterator[NewRemote]:
    """Starts a remote engine for rank 0 of the worker at a URL; it publishes to `Recorded`."""
    engines: list[RemoteEngine] = []

    def start(url: str, listener: Recorded | None = None, **changes: Any) -> RemoteEngine:
        settings: dict[str, Any] = {
            "dp_rank": 3,
            "url": url,
            "worker_rank": 0,
            "expected": Expected(1, frozenset(("tiny",)), 64),
            "model_dir": str(tiny_llama_dir),
            "block_size": BLOCK,
            "max_requests": 8,
            "may_flush": False,
            "stall_timeout_s": 10.0,
        }
        engine = RemoteEngine(RemoteRank(**(settings | changes)))
        engine.start(listener)
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.stop()
        await engine.wait_stopped()


async def until_available(engine: RemoteEngine) -> None:
    """Wait until requests can be sent, and all of the worker's cache is known or can't be."""
    await until(lambda: engine.status.unavailable is None, lambda: engine.status)
