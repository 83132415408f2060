"""Every op in its plainest form: one loop, one formula, in the dtype of its inputs.

The other backends are tested against this one in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.interface import Kernels


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """See `StoreKv`."""
    block_size = key_cache.shape[1]
    for token, slot in enumerate(slots.tolist()):
        block, offset = divmod(slot, block_size)
        key_cache[block, offset] = key[token]
        value_cache[block, offset] = value[token]


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
        out = torch.empty_like(query)
        start = 0
        for sequence, (query_len, kv_len) in enumerate(zip(self.query_lens, self.kv_lens, strict=True)):
            window = self.sliding_window or kv_len
            positions = range(max(0, kv_len - query_len - window + 1), kv_len)
            read = [divmod(position, self.block_size) for position in positions]
            blocks = self.block_tables[sequence, [block for block, _ in read]]
            offsets = torch.tensor([offset for _, offset in read], device=blocks.device)
            rows = slice(start, start + query_len)
            keys, values = key_cache[blocks, offsets], value_cache[blocks, offsets]
            out[rows] = self._attend(query[rows], keys, values, window)
            start += query_len
        return out

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
        """One sequence: query [Q, H, D] against keys and values [L, K, D], whose last Q are its own."""
        group = query.shape[1] // keys.shape[1]
        key_index = torch.arange(len(keys), device=query.device)
        query_index = key_index[len(keys) - len(query) :, None]
        unread = (key_index > query_index) | (key_index <= query_index - window)
        heads = []
        for head in range(query.shape[1]):
            scores = self.scale * query[:, head] @ keys[:, head // group].T
            weights = torch.softmax(scores.masked_fill(unread, float("-inf")), dim=-1)
            heads.append(weights @ values[:, head // group])
        return torch.stack(heads, dim=1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `RmsNorm`. Source: arXiv:1910.07467, rounded where Hugging Face's Llama rounds."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `RotaryEmbedding`. Source: arXiv:2104.09864, pairs split by halves."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def silu_and_mul(x: Tensor) -> Tensor:
    """See `SiluAndMul`."""
    gate, up = x.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


@dataclass(frozen=True, slots=True)
class ReferenceLinear:
    """A linear layer."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        out = x @ self.weight.T
        return out if self.bias is None else out + self.bias


KERNELS = Kernels(
    name="reference",
    store_kv=store_kv,
    plan_attention=ReferenceAttention,
    rms_norm=rms_norm,
    rotary_embedding=rotary_embedding,
    silu_and_mul=silu_and_mul,
    pack_linear=ReferenceLinear,
)
