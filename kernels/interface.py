"""What a kernel backend offers: the ops, their signatures and layouts.

T tokens of a step, H query heads, K key/value heads (H a multiple of K), D head size. The KV cache of one
layer is two tensors [num_blocks, block_size, K, D]; a token's slot is `block * block_size + offset`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class StoreKv(Protocol):
    """Write keys and values [T, K, D] to the slots [T] (int64, distinct) of one layer's cache."""

    def __call__(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
    ) -> None: ...


class PagedAttention(Protocol):
    """One step's attention, planned once and called once per layer.

    out[t] = softmax(scale * query[t] @ keys[first : position(t) + 1].T) @ values[first : position(t) + 1]

    where first is 0, or position(t) - sliding_window + 1 if that is more.

    Takes queries [T, H, D] and one layer's caches, which already hold the step's own keys and values;
    returns [T, H, D]. Query head h reads key/value head `h // (H / K)`.
    """

    def __call__(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> Tensor: ...


class PlanAttention(Protocol):
    """Plan causal attention of a ragged batch: prefill, chunks and decode alike.

    Sequence s has `kv_lens[s]` tokens in the cache, found through row s of `block_tables` [S, any] (int64;
    entries past the last used block, or before the first query's window, are never read), of which the last
    `query_lens[s]` >= 1 are the step's queries. Queries lie one sequence after another.

    A query at position p reads positions p - sliding_window + 1 to p, as in Hugging Face; None reads all
    before it.
    """

    def __call__(
        self,
        query_lens: Sequence[int],
        kv_lens: Sequence[int],
        block_tables: Tensor,
        block_size: int,
        scale: float,
        sliding_window: int | None = None,
    ) -> PagedAttention: ...


class RmsNorm(Protocol):
    """weight * x / sqrt(mean(x², last dim) + eps), the mean in float32 or better. x [T, N], weight [N]."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...


class RotaryEmbedding(Protocol):
    """Rotate pairs (x[i], x[i + D/2]) of each head by the token's angle (NeoX layout).

    x [T, any heads, D]; cos and sin [T, D/2] in x's dtype. Returns a new tensor like x.
    """

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...


class SiluAndMul(Protocol):
    """silu(x[:, :N]) * x[:, N:] for x [T, 2N]: [T, N]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Linear(Protocol):
    """x [T, in] @ weight.T + bias: [T, out], the weight bound by `PackLinear`."""

    def __call__(self, x: Tensor) -> Tensor: ...


class PackLinear(Protocol):
    """Bind a weight [out, in] and an optional bias [out], in the layout that is fastest to multiply with.

    The layout may be a copy: the caller drops its own reference to the weight if it has no other use.
    """

    def __call__(self, weight: Tensor, bias: Tensor | None = None) -> Linear: ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """One backend's ops."""

    name: str
    store_kv: StoreKv
    plan_attention: PlanAttention
    rms_norm: RmsNorm
    rotary_embedding: RotaryEmbedding
    silu_and_mul: SiluAndMul
    pack_linear: PackLinear
