"""Writing to and copying between KV caches for the `torch` backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# In [layers, 2, num_blocks, block_size, K, D].
BLOCK_DIM = 2


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """See `StoreKv`."""
    key_cache.flatten(0, 1).index_copy_(0, slots, key)
    value_cache.flatten(0, 1).index_copy_(0, slots, value)


def copy_blocks(kv_cache: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """See `CopyBlocks`."""
    swap_blocks(kv_cache, kv_cache, pairs)


def swap_blocks(source: Tensor, destination: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """See `SwapBlocks`."""
    source_ids = torch.tensor([pair[0] for pair in pairs], dtype=torch.int64, device=source.device)
    destination_ids = torch.tensor([pair[1] for pair in pairs], dtype=torch.int64, device=destination.device)
    blocks = source.index_select(BLOCK_DIM, source_ids).to(destination.device)
    destination.index_copy_(BLOCK_DIM, destination_ids, blocks)
