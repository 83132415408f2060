from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import BLOCK_SIZES, DTYPES, HEAD_DIMS, Backend, covering

NUM_SLOTS = 64


@pytest.mark.parametrize(
    ("num_tokens", "kv_heads", "head_dim", "block_size", "dtype"),
    covering([0, 1, 20, NUM_SLOTS], [1, 2, 3, 4], HEAD_DIMS, BLOCK_SIZES, DTYPES),
)
def test_store_kv_writes_its_slots_and_nothing_else(
    num_tokens: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, backend: Backend
) -> None:
    torch.manual_seed(0)
    slots = torch.randperm(NUM_SLOTS)[:num_tokens]
    # As in the model: both are slices of a wider row.
    row = torch.randn(num_tokens, 3 * kv_heads, head_dim).to(dtype)
    key, value = row[:, kv_heads : 2 * kv_heads], row[:, 2 * kv_heads :]
    caches = torch.full((2, NUM_SLOTS // block_size, block_size, kv_heads, head_dim), float("nan"))
    key_cache, value_cache = (backend.place(cache.to(dtype)) for cache in caches)
    backend.kernels.store_kv(
        backend.place(key), backend.place(value), key_cache, value_cache, backend.place(slots)
    )
    untouched = torch.ones(NUM_SLOTS, dtype=torch.bool).index_fill_(0, slots, False)
    for cache, stored in ((key_cache, key), (value_cache, value)):
        flat = cache.cpu().flatten(0, 1)
        assert torch.equal(flat[slots], stored)
        assert flat[untouched].isnan().all()


def new_kv_cache(num_blocks: int, block_size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(3, 2, num_blocks, block_size, 2, 16).to(dtype)


@pytest.mark.parametrize(
    ("pairs", "block_size", "dtype"),
    covering([[], [(0, 5)], [(3, 1), (3, 2), (6, 0)]], BLOCK_SIZES, DTYPES),
)
def test_copy_blocks(
    pairs: list[tuple[int, int]], block_size: int, dtype: torch.dtype, backend: Backend
) -> None:
    torch.manual_seed(0)
    before = new_kv_cache(7, block_size, dtype)
    # What was never written may be copied too, and overwritten.
    before[:, :, [1, 5]] = float("nan")
    before[:, :, 3, -1] = float("nan")
    cache = backend.place(before.clone())
    backend.kernels.copy_blocks(cache, pairs)
    expected = list(range(7))
    for source, destination in pairs:
        expected[destination] = source
    torch.testing.assert_close(cache.cpu(), before[:, :, expected], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("pairs", "block_size", "dtype"),
    covering([[], [(4, 2)], [(3, 1), (0, 2), (3, 0)]], BLOCK_SIZES, DTYPES),
)
@pytest.mark.parametrize("is_out", [True, False])
def test_swap_blocks_between_device_and_host(
    pairs: list[tuple[int, int]], block_size: int, dtype: torch.dtype, is_out: bool, backend: Backend
) -> None:
    torch.manual_seed(0)
    source = new_kv_cache(5, block_size, dtype)
    destination = torch.full_like(source[:, :, :3], float("nan"))
    if is_out:
        source_there, destination_there = backend.place(source), destination.clone()
    else:
        source_there, destination_there = source, backend.place(destination.clone())
    backend.kernels.swap_blocks(source_there, destination_there, pairs)
    for source_block, destination_block in pairs:
        destination[:, :, destination_block] = source[:, :, source_block]
    torch.testing.assert_close(destination_there.cpu(), destination, rtol=0, atol=0, equal_nan=True)
