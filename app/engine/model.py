"""The Llama architecture over a paged KV cache. Source: arXiv:2302.13971, arXiv:2307.09288 (GQA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from app.engine.architecture import Architecture
from kernels import Kernels
from kernels.interface import Linear, PagedAttention


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Projections that read the same input are one."""

    attention_norm: Tensor  # [hidden]
    qkv: Linear  # hidden -> queries, keys, values of all heads
    output: Linear
    mlp_norm: Tensor  # [hidden]
    gate_up: Linear  # hidden -> gate, up
    down: Linear


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    """A whole model's weights on their device."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # [hidden]
    head: Linear  # hidden -> vocab


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input: T tokens of several sequences, one sequence after another."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T] in their sequences
    slots: Tensor  # [T] where their keys and values go
    attention: PagedAttention
    sampled_rows: Tensor  # of the T tokens, those whose logits are wanted


class Llama:
    """The model as a function of a batch and the cache; holds no state of requests."""

    def __init__(
        self, architecture: Architecture, weights: LlamaWeights, kernels: Kernels, max_model_len: int
    ) -> None:
        self._architecture = architecture
        self._weights = weights
        self._kernels = kernels
        angles = architecture.rope.angles(architecture.head_dim, max_model_len)
        # Of positions 0..max_model_len-1: [max_model_len, head_dim / 2].
        self._cos = angles.cos().to(weights.embedding)
        self._sin = angles.sin().to(weights.embedding)

    def forward(self, batch: Batch, kv_cache: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Logits [sampled rows, vocab]; writes keys and values to `kv_cache`, one pair per layer."""
        kernels, eps = self._kernels, self._architecture.rms_norm_eps
        cos, sin = self._cos[batch.positions], self._sin[batch.positions]
        x = F.embedding(batch.token_ids, self._weights.embedding)
        for layer, (key_cache, value_cache) in zip(self._weights.layers, kv_cache, strict=True):
            qkv = layer.qkv(kernels.rms_norm(x, layer.attention_norm, eps))
            query = self._rotate_and_store(qkv, cos, sin, key_cache, value_cache, batch.slots)
            attended = batch.attention(query, key_cache, value_cache)
            x = x + layer.output(attended.flatten(1))
            gate_up = layer.gate_up(kernels.rms_norm(x, layer.mlp_norm, eps))
            x = x + layer.down(kernels.silu_and_mul(gate_up))
        x = kernels.rms_norm(x[batch.sampled_rows], self._weights.norm, eps)
        return self._weights.head(x)

    def _rotate_and_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
    ) -> Tensor:
        """Split qkv [T, (H + 2K) * D], store keys and values, and return the queries [T, H, D]."""
        num_heads = self._architecture.num_attention_heads
        num_kv_heads = self._architecture.num_key_value_heads
        heads = qkv.view(qkv.shape[0], -1, self._architecture.head_dim)
        # Queries and keys lie side by side and rotate alike.
        rotated = self._kernels.rotary_embedding(heads[:, : num_heads + num_kv_heads], cos, sin)
        value = heads[:, num_heads + num_kv_heads :]
        self._kernels.store_kv(rotated[:, num_heads:], value, key_cache, value_cache, slots)
        return rotated[:, :num_heads]


def kv_cache_pairs(kv_cache: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The (key, value) caches per layer of a cache [layers, 2, num_blocks, block_size, K, D]."""
    return [(layer[0], layer[1]) for layer in torch.unbind(kv_cache)]
