"""The decoder of all supported families over a paged KV cache.

Source: arXiv:2302.13971 (Llama), arXiv:2307.09288 (grouped queries), arXiv:2310.06825 (sliding window),
arXiv:2505.09388 (norm of queries and keys).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from app.engine.torch.model.architecture import Architecture
from app.engine.torch.model.rope import cos_sin
from kernels.interface import GatedLinear, Kernels, Linear, PagedAttention


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Projections that read the same input are one."""

    attention_norm: Tensor  # [hidden]
    qkv: Linear  # hidden -> queries, keys, values of all heads
    query_norm: Tensor | None  # [head_dim], of each head before its rotation; None without such norms
    key_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor  # [hidden]
    gated: GatedLinear  # hidden -> silu(gate) * up
    down: Linear


@dataclass(frozen=True, slots=True)
class DecoderWeights:
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
    attention: Mapping[int | None, PagedAttention]  # by the layers' sliding windows
    wanted_rows: Tensor  # of the T tokens, those whose logits are wanted


class Decoder:
    """The model as a function of a batch and the cache; holds no state of requests."""

    def __init__(
        self, architecture: Architecture, weights: DecoderWeights, kernels: Kernels, max_model_len: int
    ) -> None:
        self._architecture = architecture
        self._weights = weights
        self._kernels = kernels
        # A window that no text outgrows is none.
        self._windows = tuple(
            window if window is not None and window < max_model_len else None
            for window in architecture.sliding_windows
        )
        cos, sin = cos_sin(architecture.rope, architecture.head_dim, max_model_len)
        self._cos, self._sin = cos.to(weights.embedding), sin.to(weights.embedding)

    @property
    def sliding_windows(self) -> frozenset[int | None]:
        """The windows for which a batch needs an attention."""
        return frozenset(self._windows)

    def forward(self, batch: Batch, kv_cache: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Logits [wanted rows, vocab] in float32; writes keys and values to `kv_cache`, a pair per layer."""
        return self.logits(self.hidden(batch, kv_cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocab] in float32 of what `hidden` has returned [n, hidden]."""
        return self._weights.head.wide(hidden)

    def hidden(self, batch: Batch, kv_cache: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """What the last layer says of the wanted rows [wanted rows, hidden]; writes to `kv_cache`."""
        kernels, eps = self._kernels, self._architecture.rms_norm_eps
        cos, sin = self._cos[batch.positions], self._sin[batch.positions]
        layers = self._weights.layers
        next_norms = (*(layer.attention_norm for layer in layers[1:]), self._weights.norm)
        residual = F.embedding(batch.token_ids, self._weights.embedding)
        x = kernels.rms_norm(residual, layers[0].attention_norm, eps)
        for layer, next_norm, window, (key_cache, value_cache) in zip(
            layers, next_norms, self._windows, kv_cache, strict=True
        ):
            query, key, value = self._rotated(layer, layer.qkv(x), cos, sin)
            kernels.store_kv(key, value, key_cache, value_cache, batch.slots)
            attended = batch.attention[window](query, key_cache, value_cache).flatten(1)
            if layer is layers[-1]:
                # After the last attention only the tokens whose logits are wanted are needed.
                attended, residual = attended[batch.wanted_rows], residual[batch.wanted_rows]
            x, residual = kernels.fused_add_rms_norm(layer.output(attended), residual, layer.mlp_norm, eps)
            x = layer.down(layer.gated(x))
            x, residual = kernels.fused_add_rms_norm(x, residual, next_norm, eps)
        return x

    def _rotated(
        self, layer: LayerWeights, qkv: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Split qkv [T, (H + 2K) * D] into rotated queries [T, H, D] and keys, and values [T, K, D]."""
        arch, kernels = self._architecture, self._kernels
        num_heads, num_kv_heads = arch.num_attention_heads, arch.num_key_value_heads
        heads = qkv.view(qkv.shape[0], -1, arch.head_dim)
        value = heads[:, num_heads + num_kv_heads :]
        if layer.query_norm is None or layer.key_norm is None:
            # Queries and keys lie side by side and rotate alike.
            rotated = kernels.rotary_embedding(heads[:, : num_heads + num_kv_heads], cos, sin)
            return rotated[:, :num_heads], rotated[:, num_heads:], value
        query = kernels.rms_norm(heads[:, :num_heads], layer.query_norm, arch.rms_norm_eps)
        key = kernels.rms_norm(heads[:, num_heads:-num_kv_heads], layer.key_norm, arch.rms_norm_eps)
        return kernels.rotary_embedding(query, cos, sin), kernels.rotary_embedding(key, cos, sin), value


def kv_cache_pairs(kv_cache: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The (key, value) caches per layer of a cache [layers, 2, num_blocks, block_size, K, D]."""
    return [(layer[0], layer[1]) for layer in torch.unbind(kv_cache)]
