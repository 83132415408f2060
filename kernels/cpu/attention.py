"""Paged attention for the `cpu` backend: one C call per layer, straight from the block tables.

What is not bfloat16 goes the `torch` backend's way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from kernels.cpu.library import address, load_library, rows
from kernels.interface import PagedAttention
from kernels.torch import attention as torch_attention

_NO_WINDOW = 2**60


class _Plan(ctypes.Structure):
    """`kvb_attention_plan` of kernels/cpu/attention.cpp."""

    _fields_ = (
        ("num_sequences", ctypes.c_int64),
        ("query_starts", ctypes.c_void_p),
        ("kv_lens", ctypes.c_void_p),
        ("block_tables", ctypes.c_void_p),
        ("table_width", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


class CpuAttention:
    """One step's attention."""

    def __init__(
        self,
        query_lens: Sequence[int],
        kv_lens: Sequence[int],
        block_tables: Tensor,
        block_size: int,
        scale: float,
        sliding_window: int | None,
    ) -> None:
        self._arguments = (query_lens, kv_lens, block_tables, block_size, scale, sliding_window)
        # The plan holds addresses only: the tensors must live as long.
        self._query_starts = torch.tensor([0, *accumulate(query_lens)])
        self._kv_lens = torch.tensor(kv_lens, dtype=torch.int64)
        self._block_tables = block_tables.to(torch.int64).contiguous()
        self._plan = _Plan(
            len(query_lens),
            address(self._query_starts),
            address(self._kv_lens),
            address(self._block_tables),
            block_tables.shape[1],
            block_size,
            sliding_window or _NO_WINDOW,
            scale,
        )

    def __call__(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> Tensor:
        """See `PagedAttention`."""
        if query.dtype != torch.bfloat16:
            return self._in_torch(query, key_cache, value_cache)
        return self._run(query, key_cache, value_cache, None)

    def with_lse(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> tuple[Tensor, Tensor]:
        """See `PagedAttention`."""
        if query.dtype != torch.bfloat16:
            return self._in_torch.with_lse(query, key_cache, value_cache)
        lse = torch.empty(query.shape[:2], dtype=torch.float32)
        return self._run(query, key_cache, value_cache, lse), lse

    @cached_property
    def _in_torch(self) -> PagedAttention:
        return torch_attention.plan_attention(*self._arguments)

    def _run(self, query: Tensor, key_cache: Tensor, value_cache: Tensor, lse: Tensor | None) -> Tensor:
        assert key_cache.is_contiguous(), "a cache has no gaps"
        assert value_cache.is_contiguous(), "a cache has no gaps"
        query = rows(query)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        num_heads, head_dim = query.shape[1:]
        load_library().kvb_attention(
            ctypes.byref(self._plan),
            num_heads,
            key_cache.shape[2],
            head_dim,
            address(query),
            query.stride(0),
            address(key_cache),
            address(value_cache),
            address(out),
            address(lse),
            torch.get_num_threads(),
        )
        return out


def plan_attention(
    query_lens: Sequence[int],
    kv_lens: Sequence[int],
    block_tables: Tensor,
    block_size: int,
    scale: float,
    sliding_window: int | None = None,
) -> CpuAttention:
    """See `PlanAttention`."""
    return CpuAttention(query_lens, kv_lens, block_tables, block_size, scale, sliding_window)
