"""What a kernel backend offers: the ops, their signatures and layouts.

T tokens of a step, H query heads, K key/value heads (H a multiple of K), D head size. The KV cache of one
layer is two tensors [num_blocks, block_size, K, D]; a token's slot is `block * block_size + offset`. A whole
KV cache is one tensor [layers, 2, num_blocks, block_size, K, D]. "float32 or better" is float32 for inputs
of up to 32 bits and float64 for float64.

Ops without a caller yet, each tested like the others: `MergeAttentionStates` and `PagedAttention.with_lse`
wait for attention that splits a long sequence's keys over a GPU, `CopyBlocks` and `SwapBlocks` for a tier of
the KV cache in the host's memory.
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
    """One step's attention, planned once and called once per layer. Source: arXiv:2309.06180 (paged).

    out[t] = softmax(scale * query[t] @ keys[first : position(t) + 1].T) @ values[first : position(t) + 1]

    where first is 0, or position(t) - sliding_window + 1 if that is more.

    Takes queries [T, H, D] and one layer's caches, which already hold the step's own keys and values;
    returns [T, H, D]. Query head h reads key/value head `h // (H / K)`.
    """

    def __call__(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> Tensor: ...

    def with_lse(self, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and log(sum(exp(scores))) [T, H] in float32 or better, for `MergeAttentionStates`.

        Waits for a caller: split keys on a GPU.
        """
        ...


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


class MergeAttentionStates(Protocol):
    """Attention over two disjoint sets of keys, from the attention over each.

        lse = log(exp(lse_a) + exp(lse_b))
        out = exp(lse_a - lse) * out_a + exp(lse_b - lse) * out_b

    Outputs [T, H, D] and log-sum-exps [T, H] as `PagedAttention.with_lse` gives them; returns (out, lse). A
    side whose log-sum-exp is -inf read nothing, and its output counts for nothing, even NaN; where both are,
    out is 0. Source: arXiv:2205.14135 (FlashAttention, section 3.1), FlashInfer's cascade inference.

    Waits for a caller: split keys on a GPU.
    """

    def __call__(
        self, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
    ) -> tuple[Tensor, Tensor]: ...


class CopyBlocks(Protocol):
    """Copy blocks inside one whole KV cache, in all layers: pairs of (source, destination) block ids.

    Destinations are distinct and none of them is a source. Waits for a caller: a tier in the host's memory.
    """

    def __call__(self, kv_cache: Tensor, pairs: Sequence[tuple[int, int]]) -> None: ...


class SwapBlocks(Protocol):
    """Copy blocks between two whole KV caches on any two devices, in all layers.

    The caches may differ in `num_blocks` only. Pairs of (block id in source, block id in destination), the
    latter distinct. Out and back in are two calls with the caches exchanged. Waits for a caller: a tier in
    the host's memory.
    """

    def __call__(self, source: Tensor, destination: Tensor, pairs: Sequence[tuple[int, int]]) -> None: ...


class RmsNorm(Protocol):
    """weight * x / sqrt(mean(x², last dim) + eps), the mean in float32 or better. x [.., N], weight [N]."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...


class FusedAddRmsNorm(Protocol):
    """The next residual and its norm: sum = residual + x; returns (RmsNorm(sum, weight, eps), sum).

    x and residual [.., N], weight [N]. The sum is rounded to its dtype before it is normed, as it would be
    without fusion. New tensors; the inputs stay as they are.
    """

    def __call__(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]: ...


class RotaryEmbedding(Protocol):
    """Rotate pairs (x[i], x[i + D/2]) of each head by the token's angle (NeoX layout).

    x [T, any heads, D]; cos and sin [T, D/2] in x's dtype. Returns a new tensor like x.
    """

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...


class SiluAndMul(Protocol):
    """silu(x[:, :N]) * x[:, N:] for x [T, 2N]: [T, N]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class TopKTopP(Protocol):
    """Logits [n, vocab] with -inf wherever a token must not be sampled: a new tensor.

    Row i keeps its `top_k[i]` likeliest tokens (int64 [n], at least 1; vocab or more keeps all), then of
    these the fewest likeliest whose probabilities among them sum to `top_p[i]` or more (float [n], above 0;
    1 keeps all). Probabilities are in float64. Of equal logits at the border, those of the
    lowest token ids remain: so what a row keeps doesn't depend on the other rows.
    """

    def __call__(self, logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor: ...


class Linear(Protocol):
    """x [T, in] @ weight.T + bias: [T, out], the weight bound by `PackLinear`."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def wide(self, x: Tensor) -> Tensor:
        """The same in float32 or better: the sums as they are, unless a backend has them only rounded."""
        ...


class PackLinear(Protocol):
    """Bind a weight [out, in] and an optional bias [out], in the layout that is fastest to multiply with.

    The layout may be a copy: the caller drops its own reference to the weight if it has no other use.
    """

    def __call__(self, weight: Tensor, bias: Tensor | None = None) -> Linear: ...


class GatedLinear(Protocol):
    """silu(gate) * up for (gate, up) = the halves of x [T, in] @ weight.T + bias: [T, N].

    Source: arXiv:2002.05202 (SwiGLU). The weight is bound by `PackGatedLinear`.
    """

    def __call__(self, x: Tensor) -> Tensor: ...


class PackGatedLinear(Protocol):
    """Bind a weight [2N, in], the gate's rows before up's, and an optional bias [2N], as `PackLinear`."""

    def __call__(self, weight: Tensor, bias: Tensor | None = None) -> GatedLinear: ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """One backend's ops."""

    name: str
    store_kv: StoreKv
    copy_blocks: CopyBlocks
    swap_blocks: SwapBlocks
    plan_attention: PlanAttention
    merge_attention_states: MergeAttentionStates
    rms_norm: RmsNorm
    fused_add_rms_norm: FusedAddRmsNorm
    rotary_embedding: RotaryEmbedding
    silu_and_mul: SiluAndMul
    top_k_top_p: TopKTopP
    pack_linear: PackLinear
    pack_gated_linear: PackGatedLinear
