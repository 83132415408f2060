"""Paged attention for the `triton` backend: prefill, chunks and decode in one launch.

One program takes a tile of up to TILE_QUERIES neighbouring queries of one sequence and the query heads that
share a key/value head, so that each key is read once for all of them, and goes over the tokens that they
read with a running softmax (arXiv:2205.14135). The tiles are laid out on the host, once per step.

    rows of a tile's matrix:  query 0: head 0, 1, .. GROUP_TILE - 1 | query 1: head 0, .. | ..
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.numerics import dot, rounded

# Queries of one tile: enough to fill a matrix instruction, few enough that a tile's end wastes little.
PREFILL_TILE_QUERIES = 16
# Rows that a matrix instruction has at least, and that a tile has at most.
MIN_ROWS, MAX_ROWS = 16, 128
# Of one tile's queries, and of one tile of keys; as many bytes of values, and the next keys and values, lie
# beside them in shared memory.
QUERY_TILE_BYTES, KEY_TILE_BYTES = 32768, 16384
MIN_TILE_KEYS, MAX_TILE_KEYS = 16, 64
# Elements of a tile's output from which on it takes twice the warps.
WIDE_TILE = 64 * 128


@triton.jit
def _attend(
    query,
    key_cache,
    value_cache,
    out,
    lse,
    tiles,
    block_tables,
    scale,
    stride_query_token,
    stride_query_head,
    stride_block,
    stride_slot,
    stride_kv_head,
    stride_table,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_QUERIES: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """One tile; query, out [T, H, D], lse [T, H], caches as in the interface. WINDOW 0 is none."""
    tile = tiles + 4 * tl.program_id(0)
    sequence = tl.load(tile)
    first_row = tl.load(tile + 1)
    num_queries = tl.load(tile + 2).to(tl.int32)
    first_position = tl.load(tile + 3).to(tl.int32)
    parts = (GROUP + GROUP_TILE - 1) // GROUP_TILE
    kv_head = tl.program_id(1) // parts

    rows = tl.arange(0, TILE_QUERIES * GROUP_TILE)
    # Rows beyond the last query repeat it, and aren't stored.
    index = tl.minimum(rows // GROUP_TILE, num_queries - 1)
    member = tl.program_id(1) % parts * GROUP_TILE + rows % GROUP_TILE
    is_row = (rows // GROUP_TILE < num_queries) & (member < GROUP)
    token = first_row + index
    head = kv_head * GROUP + member
    position = first_position + index
    dims = tl.arange(0, HEAD_DIM_TILE)
    is_dim = dims < HEAD_DIM
    is_element = is_row[:, None] & is_dim[None, :]
    places = (token * stride_query_token + head * stride_query_head)[:, None] + dims[None, :]
    queries = tl.load(query + places, mask=is_element, other=0.0)

    largest = tl.full([TILE_QUERIES * GROUP_TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE_QUERIES * GROUP_TILE], tl.float32)
    acc = tl.zeros([TILE_QUERIES * GROUP_TILE, HEAD_DIM_TILE], tl.float32)
    end = first_position + num_queries
    first = tl.maximum(first_position - WINDOW + 1, 0) if WINDOW else 0
    for start in range(first, end, TILE_KEYS):
        key_position = start + tl.arange(0, TILE_KEYS)
        is_key = key_position < end
        table = block_tables + sequence * stride_table + key_position // BLOCK_SIZE
        block = tl.load(table, mask=is_key, other=0)
        slots = block * stride_block + key_position % BLOCK_SIZE * stride_slot + kv_head * stride_kv_head
        is_loaded = is_key[:, None] & is_dim[None, :]
        keys = tl.load(key_cache + slots[:, None] + dims[None, :], mask=is_loaded, other=0.0)
        values = tl.load(value_cache + slots[:, None] + dims[None, :], mask=is_loaded, other=0.0)

        is_read = is_key[None, :] & (key_position[None, :] <= position[:, None])
        if WINDOW:
            is_read = is_read & (key_position[None, :] > position[:, None] - WINDOW)
        scores = tl.where(is_read, scale * dot(queries, tl.trans(keys)), float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        # A row whose window begins after this tile has read nothing as yet.
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp(scores - shift[:, None])
        decay = tl.exp(largest - shift)
        total = total * decay + tl.sum(weights, 1)
        acc = acc * decay[:, None] + dot(rounded(weights, values.dtype), values)
        largest = new_largest

    places = ((token * NUM_HEADS + head) * HEAD_DIM)[:, None] + dims[None, :]
    tl.store(out + places, rounded(acc / total[:, None], out.dtype.element_ty), mask=is_element)
    if HAS_LSE:
        tl.store(lse + token * NUM_HEADS + head, largest + tl.log(total), mask=is_row)


@dataclass(frozen=True, slots=True)
class TritonAttention:
    """One step's attention."""

    tiles: Tensor  # [tiles, 4] int64: sequence, first row of the step's queries, number of them, position
    tile_queries: int
    block_tables: Tensor
    block_size: int
    scale: float
    sliding_window: int | None

    def __call__(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> Tensor:
        """See `PagedAttention`."""
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        self._launch(query, key_cache, value_cache, out, None)
        return out

    def with_lse(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> tuple[Tensor, Tensor]:
        """See `PagedAttention`."""
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
        self._launch(query, key_cache, value_cache, out, lse)
        return out, lse

    def _launch(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, out: Tensor, lse: Tensor | None
    ) -> None:
        num_heads, head_dim = query.shape[1:]
        num_kv_heads = key_cache.shape[2]
        group = num_heads // num_kv_heads
        head_dim_tile = triton.next_power_of_2(head_dim)
        row_bytes = head_dim_tile * query.element_size()
        max_rows = min(max(QUERY_TILE_BYTES // row_bytes, MIN_ROWS), MAX_ROWS)
        group_tile = min(triton.next_power_of_2(group), max_rows // self.tile_queries)
        group_tile = max(group_tile, MIN_ROWS // self.tile_queries)
        tile_keys = min(max(KEY_TILE_BYTES // row_bytes, MIN_TILE_KEYS), MAX_TILE_KEYS)
        if not len(self.tiles):
            return
        assert query.stride(2) == 1, "a head's elements lie side by side"
        assert key_cache.stride() == value_cache.stride(), "the caches of a layer are laid out alike"
        _attend[(len(self.tiles), num_kv_heads * triton.cdiv(group, group_tile))](
            query,
            key_cache,
            value_cache,
            out,
            lse,
            self.tiles,
            self.block_tables,
            self.scale,
            *query.stride()[:2],
            *key_cache.stride()[:3],
            self.block_tables.stride(0),
            NUM_HEADS=num_heads,
            GROUP=group,
            GROUP_TILE=group_tile,
            HEAD_DIM=head_dim,
            HEAD_DIM_TILE=head_dim_tile,
            BLOCK_SIZE=self.block_size,
            TILE_QUERIES=self.tile_queries,
            TILE_KEYS=tile_keys,
            WINDOW=self.sliding_window or 0,
            HAS_LSE=lse is not None,
            num_warps=8 if self.tile_queries * group_tile * head_dim_tile >= WIDE_TILE else 4,
            num_stages=2,
            enable_fp_fusion=True,
        )


def plan_attention(
    query_lens: Sequence[int],
    kv_lens: Sequence[int],
    block_tables: Tensor,
    block_size: int,
    scale: float,
    sliding_window: int | None = None,
) -> TritonAttention:
    """See `PlanAttention`."""
    tile_queries = 1 if max(query_lens, default=1) == 1 else PREFILL_TILE_QUERIES
    starts = accumulate(query_lens, initial=0)
    tiles = [
        (sequence, start + offset, min(tile_queries, query_len - offset), kv_len - query_len + offset)
        for sequence, (start, query_len, kv_len) in enumerate(zip(starts, query_lens, kv_lens, strict=False))
        for offset in range(0, query_len, tile_queries)
    ]
    table = torch.tensor(tiles, dtype=torch.int64).to(block_tables.device)
    return TritonAttention(table, tile_queries, block_tables, block_size, scale, sliding_window)
