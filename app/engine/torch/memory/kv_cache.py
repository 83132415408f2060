"""The memory that keys and values live in: how many blocks it holds, and the tensor itself."""

from __future__ import annotations

import torch
from torch import Tensor

from app.engine.machine_memory import gib
from app.engine.torch.memory.available import available_bytes
from app.engine.torch.model.architecture import Architecture
from app.errors import InsufficientMemoryError
from app.settings.engine import CacheConfig


def bytes_per_block(architecture: Architecture, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block's keys and values in all layers."""
    return block_size * architecture.kv_bytes_per_token(dtype.itemsize)


def count_blocks(
    config: CacheConfig, architecture: Architecture, device: torch.device, dtype: torch.dtype
) -> int:
    """`num_blocks`, or as many as `memory_fraction` of the memory that is free now holds.

    Raises:
        InsufficientMemoryError: they don't fit, or not even one does.
    """
    block_bytes = bytes_per_block(architecture, config.block_size, dtype)
    available = available_bytes(device)
    if config.num_blocks is None:
        num_blocks = int(available * config.memory_fraction) // block_bytes
        if num_blocks == 0:
            raise InsufficientMemoryError(
                f"cache.memory_fraction = {config.memory_fraction} of {gib(available)} free on {device} "
                f"holds no block of {gib(block_bytes)}; raise it, or lower cache.block_size"
            )
        return num_blocks
    needed = config.num_blocks * block_bytes
    if needed > available:
        raise InsufficientMemoryError(
            f"cache.num_blocks = {config.num_blocks} needs {gib(needed)}, {device} has {gib(available)} free "
            f"after the weights; at most {available // block_bytes} blocks fit"
        )
    return config.num_blocks


def allocate(
    architecture: Architecture,
    num_blocks: int,
    block_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """An uninitialised cache [layers, 2, num_blocks, block_size, K, D].

    A cpu maps its pages when they are first written.
    """
    shape = (
        architecture.num_hidden_layers,
        2,
        num_blocks,
        block_size,
        architecture.num_key_value_heads,
        architecture.head_dim,
    )
    return torch.empty(shape, device=device, dtype=dtype)
