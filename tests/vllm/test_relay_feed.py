"""The feed behind vLLM's own publisher and event classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from app import hashing
from app.engine.relay.feed import ForeignFeed
from app.engine.relay.feed_status import ForeignPublisher
from app.engine.relay.relay import Relay
from app.events.schema import CacheEvent
from app.routing.index.index_writer import IndexWriter
from app.routing.index.prefix_index import PrefixIndex
from tests.support.deadlines import until

kv_events = pytest.importorskip("vllm.distributed.kv_events")

BLOCK = 32
TOKENS = list(range(4 * BLOCK))


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Any]:
    endpoints = {"endpoint": f"ipc://{tmp_path}/e", "replay_endpoint": f"ipc://{tmp_path}/r"}
    each = kv_events.ZmqEventPublisher(0, **endpoints, topic="kv")
    yield each
    each.shutdown()


def stored(start: int, stop: int, **fields: Any) -> Any:
    """vLLM's event of the blocks start..stop-1 of `TOKENS`."""
    return kv_events.BlockStored(
        block_hashes=[key(index) for index in range(start, stop)],
        parent_block_hash=key(start - 1) if start else None,
        token_ids=TOKENS[start * BLOCK : stop * BLOCK],
        block_size=BLOCK,
        lora_id=None,
        medium="GPU",
        **{"lora_name": None, "group_idx": 0, "kv_cache_spec_kind": "full_attention", **fields},
    )


def key(index: int) -> bytes:
    return bytes([index]) * 32


async def test_vllms_publisher_is_followed_from_its_first_batch_on(publisher: Any) -> None:
    index, names = PrefixIndex(), hashing.wire_hashes(hashing.chain(TOKENS, BLOCK, hashing.seed("a salt")))
    writer = IndexWriter(index, 0)

    def publish(*events: Any) -> None:
        publisher.publish(kv_events.KVEventBatch(ts=1.0, events=list(events)))

    def take(events: Sequence[CacheEvent]) -> None:
        writer.apply(events)

    config = publisher.get_publisher_config()
    address = ForeignPublisher(config.endpoint, config.replay_endpoint, config.topic)
    feed = ForeignFeed(address, Relay(BLOCK, hashes="opaque", source="vLLM"), take, name="vLLM")
    publish(stored(0, 2, extra_keys=[("a salt",), None]))
    feed.start()
    try:
        await until(lambda: index.blocks_of(0) == set(names[:2]), lambda: feed.status)
        publish(stored(2, 3), stored(3, 4, extra_keys=[("adapter",)], lora_name="adapter"))
        publish(stored(0, 1, kv_cache_spec_kind="sliding_window", group_idx=1))
        publish(kv_events.BlockRemoved(block_hashes=[key(1)], medium="GPU", group_idx=0))
        await until(lambda: index.blocks_of(0) == set(names[:1]), lambda: feed.status)
        status = feed.status
        assert (status.state, status.bad_messages, status.gaps) == ("whole", 0, 0)
        assert status.relay.faults == {}
        assert status.relay.kept_apart == {"lora": 1}
        assert status.relay.not_followed == {"group:sliding_window": 1}
        publish(kv_events.AllBlocksCleared())
        await until(lambda: not index.blocks_of(0), lambda: feed.status)
    finally:
        await feed.close()
