"""Every op in its plainest form: one loop, one formula, in the dtype of its inputs.

The other backends are tested against this one in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.interface import Kernels
from kernels.unfused_gated_linear import unfused_gated_linear


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """See `StoreKv`."""
    block_size = key_cache.shape[1]
    for token, slot in enumerate(slots.tolist()):
        block, offset = divmod(slot, block_size)
        key_cache[block, offset] = key[token]
        value_cache[block, offset] = value[token]


def copy_blocks(kv_cache: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """See `CopyBlocks`."""
    for source, destination in pairs:
        kv_cache[:, :, destination] = kv_cache[:, :, source]


def swap_blocks(source: Tensor, destination: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """See `SwapBlocks`."""
    for source_block, destination_block in pairs:
        destination[:, :, destination_block] = source[:, :, source_block].to(destination.device)


@dataclass(frozen=True, slots=True)
class ReferenceAttention:
    """One step's attention, one sequence and one head after another."""

    query_lens: Sequence[int]
    kv_lens: Sequence[int]
    block_tables: Tensor
    block_size: int
    scale: float
    sliding_window: int | None = None

    def __call__(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> Tensor:
        """See `PagedAttention`."""
        return self.with_lse(query, key_cache, value_cache)[0]

    def with_lse(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> tuple[Tensor, Tensor]:
        """See `PagedAttention`."""
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse = query.new_empty(query.shape[:2], dtype=_wide(query.dtype))
        start = 0
        for sequence, (query_len, kv_len) in enumerate(zip(self.query_lens, self.kv_lens, strict=True)):
            window = self.sliding_window or kv_len
            first = max(0, kv_len - query_len - window + 1)
            positions = torch.arange(first, kv_len, device=query.device)
            blocks = self.block_tables[sequence, positions // self.block_size]
            offsets = positions % self.block_size
            rows = slice(start, start + query_len)
            keys, values = key_cache[blocks, offsets], value_cache[blocks, offsets]
            out[rows], lse[rows] = self._attend(query[rows], keys, values, window)
            start += query_len
        return out, lse

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """One sequence: query [Q, H, D] against keys and values [L, K, D], whose last Q are its own."""
        group = query.shape[1] // keys.shape[1]
        key_index = torch.arange(len(keys), device=query.device)
        query_index = key_index[len(keys) - len(query) :, None]
        unread = (key_index > query_index) | (key_index <= query_index - window)
        heads, lses = [], []
        for head in range(query.shape[1]):
            scores = self.scale * query[:, head] @ keys[:, head // group].T
            scores = scores.masked_fill(unread, float("-inf"))
            heads.append(torch.softmax(scores, dim=-1) @ values[:, head // group])
            lses.append(torch.logsumexp(scores.to(_wide(scores.dtype)), dim=-1))
        return torch.stack(heads, dim=1), torch.stack(lses, dim=1)


def merge_attention_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """See `MergeAttentionStates`."""
    lse = torch.logaddexp(lse_a, lse_b)
    out = torch.zeros_like(out_a)
    for side, side_lse in ((out_a, lse_a), (out_b, lse_b)):
        weight = torch.exp(side_lse - lse).to(side.dtype).unsqueeze(-1)
        out += torch.where(side_lse.unsqueeze(-1) == float("-inf"), 0, weight * side)
    return out, lse


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `RmsNorm`. Source: arXiv:1910.07467, rounded where Hugging Face's Llama rounds."""
    wide = x.to(_wide(x.dtype))
    return weight * (wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `FusedAddRmsNorm`."""
    total = residual + x
    return rms_norm(total, weight, eps), total


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `RotaryEmbedding`. Source: arXiv:2104.09864, pairs split by halves."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def silu_and_mul(x: Tensor) -> Tensor:
    """See `SiluAndMul`."""
    gate, up = x.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def top_k_top_p(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """See `TopKTopP`. Sources: arXiv:1805.04833 (top-k), arXiv:1904.09751 (top-p)."""
    out = torch.full_like(logits, float("-inf"))
    for row, (k, p) in enumerate(zip(top_k.tolist(), top_p.tolist(), strict=True)):
        likeliest = logits[row].argsort(descending=True, stable=True)[:k]
        mass = 0.0
        for token_id, share in zip(likeliest, torch.softmax(logits[row, likeliest].double(), 0), strict=True):
            if mass >= p and p < 1:
                break
            out[row, token_id] = logits[row, token_id]
            mass += share.item()
    return out


@dataclass(frozen=True, slots=True)
class ReferenceLinear:
    """A linear layer."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        out = x @ self.weight.T
        return out if self.bias is None else out + self.bias

    def wide(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        dtype = _wide(x.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return ReferenceLinear(self.weight.to(dtype), bias)(x.to(dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


KERNELS = Kernels(
    name="reference",
    store_kv=store_kv,
    copy_blocks=copy_blocks,
    swap_blocks=swap_blocks,
    plan_attention=ReferenceAttention,
    merge_attention_states=merge_attention_states,
    rms_norm=rms_norm,
    fused_add_rms_norm=fused_add_rms_norm,
    rotary_embedding=rotary_embedding,
    silu_and_mul=silu_and_mul,
    top_k_top_p=top_k_top_p,
    pack_linear=ReferenceLinear,
    pack_gated_linear=unfused_gated_linear(ReferenceLinear, silu_and_mul),
)
