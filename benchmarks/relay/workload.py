"""Batches as vLLM publishes them: a request's blocks in one event, removals one by one, the last first."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from app import hashing

Hashes = Literal["opaque", "chained"]
BLOCK_SIZE = 16
_VOCABULARY = 128_000


@dataclass(frozen=True)
class Workload:
    """Requests of `request_blocks` blocks, none with a prefix of another.

    `bytes_hashes`: opaque hashes are 32 bytes each, not 64 bits.
    """

    num_blocks: int
    request_blocks: int
    hashes: Hashes
    bytes_hashes: bool
    seed: int

    def payloads(self) -> tuple[list[bytes], list[bytes]]:
        """One batch a request that stores all of its blocks, and one that removes them again."""
        rng = random.Random(self.seed)
        stored, removed = [], []
        for _ in range(self.num_blocks // self.request_blocks):
            token_ids = [rng.randrange(_VOCABULARY) for _ in range(self.request_blocks * BLOCK_SIZE)]
            keys = self._keys(rng, token_ids)
            stored.append(encode([stored_event(keys, None, token_ids)]))
            removed.append(encode(removed_events(keys)))
        return stored, removed

    def _keys(self, rng: random.Random, token_ids: list[int]) -> list[int | bytes]:
        if self.hashes == "chained":
            return [*hashing.wire_hashes(hashing.chain(token_ids, BLOCK_SIZE))]
        count = self.request_blocks
        return [rng.randbytes(32) if self.bytes_hashes else rng.getrandbits(64) for _ in range(count)]


def encode(events: list[dict[str, Any]], ts: float = 0.0) -> bytes:
    """A batch's payload."""
    return msgspec.msgpack.encode((ts, events, 0))


def stored_event(keys: list[int | bytes], parent: int | bytes | None, token_ids: list[int]) -> dict[str, Any]:
    """With all the keys that vLLM 0.32 sends."""
    return {
        "type": "BlockStored",
        "block_hashes": keys,
        "parent_block_hash": parent,
        "token_ids": token_ids,
        "block_size": BLOCK_SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * len(keys),
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def removed_events(keys: list[int | bytes]) -> list[dict[str, Any]]:
    """One event a block."""
    return [
        {"type": "BlockRemoved", "block_hashes": [key], "medium": "GPU", "group_idx": 0}
        for key in reversed(keys)
    ]
