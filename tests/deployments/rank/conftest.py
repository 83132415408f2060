"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.engine.live_rank import LiveRank, new_publisher
from tests.support.engine.tiny_engine import BLOCK, tiny_engine


@pytest.fixture
async def publishing_rank(tiny_llama_dir: Path) -> AsyncIterator[LiveRank]:
    """Two requests at once, and a cache of 64 blocks of 4 tokens."""
    scheduler = {"max_running_requests": 2, "max_waiting_requests": 3, "max_batch_tokens": 64}
    publisher = new_publisher(BLOCK)
    rank = LiveRank(tiny_engine(tiny_llama_dir, scheduler=scheduler), publisher)
    yield rank
    rank.stop()
