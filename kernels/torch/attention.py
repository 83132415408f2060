"""Paged attention for the `torch` backend: gather keys and values, then one fused attention per group.

A decode token's work is small, so decodes of similar length share one padded call; a prefill or chunk is
a call of its own. The query heads that share a key/value head become rows of one query, which reads each
key once instead of once per head. All indices and masks are made once per step, not per layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

# Decodes share a call while the longest has at most this many times the tokens of the shortest: padding
# costs a gather, a further call costs its overhead.
MAX_PADDING_RATIO = 2
# Below this many tokens the overhead of a call outweighs any padding.
MIN_PADDED_LEN = 128
# Tokens gathered by one call, unless one sequence alone has more: what is gathered should still be in the
# cpu's cache when it is read (32 decodes over 512 tokens each: 15 ms in one call, 3 ms in four).
MAX_GATHERED_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class _Decodes:
    """n sequences with one query each, which read L tokens at most."""

    rows: Tensor  # [n] of the step's queries
    slots: Tensor  # [n, L]; padding repeats the last token, since unwritten slots may hold NaN
    mask: Tensor | None  # [n, 1, 1, L] true where a token may be read; None without padding
    is_causal = False

    def operands(self, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, K, group, D] and twice [n, K, L, D]: a group's heads are the rows of one query."""
        return (
            query[self.rows].view(len(self.rows), keys.shape[1], -1, query.shape[2]),
            _gather(keys, self.slots).transpose(1, 2),
            _gather(values, self.slots).transpose(1, 2),
        )

    def place(self, result: Tensor, out: Tensor) -> None:
        """Put a result [n, K, group, any] to its rows of `out` [T, H, any]."""
        out[self.rows] = result.flatten(1, 2)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One sequence with Q queries, the last of the L tokens that it reads."""

    rows: slice  # of the step's queries
    slots: Tensor  # [1, L]
    mask: Tensor | None  # [Q, L] true where a token may be read; None where that is all that came before

    @property
    def is_causal(self) -> bool:
        """Whether queries and tokens are the same and each query reads all before it."""
        return self.mask is None

    def operands(self, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[K, group, Q, D] and twice [K, group, L, D]; a group's heads share keys by stride 0."""
        queries = query[self.rows]
        grouped = queries.reshape(len(queries), keys.shape[1], -1, query.shape[2]).permute(1, 2, 0, 3)
        group = grouped.shape[1]
        return (
            grouped,
            _gather(keys, self.slots).permute(2, 0, 1, 3).expand(-1, group, -1, -1),
            _gather(values, self.slots).permute(2, 0, 1, 3).expand(-1, group, -1, -1),
        )

    def place(self, result: Tensor, out: Tensor) -> None:
        """Put a result [K, group, Q, any] to its rows of `out` [T, H, any]."""
        out[self.rows] = result.permute(2, 0, 1, 3).flatten(1, 2)


@dataclass(frozen=True, slots=True)
class TorchAttention:
    """One step's attention."""

    groups: list[_Decodes | _Chunk]
    scale: float

    def __call__(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> Tensor:
        """See `PagedAttention`."""
        out = torch.empty_like(query)
        keys, values = key_cache.flatten(0, 1), value_cache.flatten(0, 1)
        for group in self.groups:
            operands = group.operands(query, keys, values)
            result = F.scaled_dot_product_attention(
                *operands, attn_mask=group.mask, is_causal=group.is_causal, scale=self.scale
            )
            group.place(result, out)
        return out

    def with_lse(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> tuple[Tensor, Tensor]:
        """See `PagedAttention`."""
        wide = torch.promote_types(query.dtype, torch.float32)
        out = torch.empty_like(query)
        lse = query.new_empty(*query.shape[:2], 1, dtype=wide)
        keys, values = key_cache.flatten(0, 1), value_cache.flatten(0, 1)
        for group in self.groups:
            grouped, *tokens = (operand.to(wide) for operand in group.operands(query, keys, values))
            scores = self.scale * grouped @ tokens[0].mT
            mask = torch.ones_like(scores, dtype=torch.bool).tril() if group.is_causal else group.mask
            if mask is not None:
                scores.masked_fill_(~mask, float("-inf"))
            group_lse = scores.logsumexp(-1, keepdim=True)
            group.place(((scores - group_lse).exp_() @ tokens[1]).to(out.dtype), out)
            group.place(group_lse, lse)
        return out, lse.squeeze(-1)


def plan_attention(
    query_lens: Sequence[int],
    kv_lens: Sequence[int],
    block_tables: Tensor,
    block_size: int,
    scale: float,
    sliding_window: int | None = None,
) -> TorchAttention:
    """See `PlanAttention`."""
    starts = [0, *accumulate(query_lens)]
    groups: list[_Decodes | _Chunk] = []
    for sequence, query_len in enumerate(query_lens):
        if query_len > 1:
            rows = slice(starts[sequence], starts[sequence + 1])
            window = sliding_window or kv_lens[sequence]
            groups.append(_plan_chunk(rows, kv_lens[sequence], block_tables[sequence], block_size, window))
    decodes = [sequence for sequence, query_len in enumerate(query_lens) if query_len == 1]
    read_lens = [min(kv_len, sliding_window or kv_len) for kv_len in kv_lens]
    for alike in _of_similar_length(decodes, read_lens):
        rows_of = torch.tensor([starts[sequence] for sequence in alike], device=block_tables.device)
        ends = [kv_lens[sequence] for sequence in alike]
        lens = [read_lens[sequence] for sequence in alike]
        groups.append(_plan_decodes(rows_of, ends, lens, block_tables[alike], block_size))
    return TorchAttention(groups, scale)


def _of_similar_length(sequences: Iterable[int], lens: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    limit = 0
    for sequence in sorted(sequences, key=lambda sequence: lens[sequence]):
        length = lens[sequence]
        if not groups or length > limit or length * (len(groups[-1]) + 1) > MAX_GATHERED_TOKENS:
            groups.append([])
            limit = max(MIN_PADDED_LEN, MAX_PADDING_RATIO * length)
        groups[-1].append(sequence)
    return groups


def _plan_chunk(rows: slice, kv_len: int, block_table: Tensor, block_size: int, window: int) -> _Chunk:
    query_len = rows.stop - rows.start
    first = max(0, kv_len - query_len - window + 1)
    positions = torch.arange(first, kv_len, device=block_table.device)
    slots = _slots(block_table.unsqueeze(0), positions.unsqueeze(0), block_size)
    if query_len == kv_len <= window:
        return _Chunk(rows, slots, mask=None)
    query_positions = positions[-query_len:].unsqueeze(1)
    mask = (positions <= query_positions) & (positions > query_positions - window)
    return _Chunk(rows, slots, mask)


def _plan_decodes(
    rows: Tensor, kv_lens: Sequence[int], read_lens: Sequence[int], block_tables: Tensor, block_size: int
) -> _Decodes:
    """Each sequence reads the last `read_lens` of its `kv_lens` tokens."""
    ends = torch.tensor(kv_lens, device=rows.device).unsqueeze(1)
    lens = torch.tensor(read_lens, device=rows.device).unsqueeze(1)
    indices = torch.arange(max(read_lens), device=rows.device)
    slots = _slots(block_tables, torch.minimum(ends - lens + indices, ends - 1), block_size)
    mask = None if min(read_lens) == max(read_lens) else (indices < lens)[:, None, None, :]
    return _Decodes(rows, slots, mask)


def _slots(block_tables: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """Slots [n, L] of positions [n, L] through block tables [n, any]."""
    blocks = block_tables.gather(1, positions // block_size)
    return blocks * block_size + positions % block_size


def _gather(flat_cache: Tensor, slots: Tensor) -> Tensor:
    """Rows [n, L, K, D] of a cache [num_slots, K, D]."""
    return flat_cache.index_select(0, slots.flatten()).view(*slots.shape, *flat_cache.shape[1:])
