"""Writing to the KV cache for the `triton` backend."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _store(
    key,
    value,
    key_cache,
    value_cache,
    slots,
    stride_key_token,
    stride_key_head,
    stride_value_token,
    stride_value_head,
    NUM_ELEMENTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
):
    """One token's keys and values, whose K * D elements lie side by side in the cache."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    elements = tl.arange(0, TILE)
    is_element = elements < NUM_ELEMENTS
    head, dim = elements // HEAD_DIM, elements % HEAD_DIM
    key_places = token * stride_key_token + head * stride_key_head + dim
    value_places = token * stride_value_token + head * stride_value_head + dim
    places = slot * NUM_ELEMENTS + elements
    tl.store(key_cache + places, tl.load(key + key_places, mask=is_element), mask=is_element)
    tl.store(value_cache + places, tl.load(value + value_places, mask=is_element), mask=is_element)


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """See `StoreKv`."""
    num_tokens, num_kv_heads, head_dim = key.shape
    if num_tokens == 0:
        return
    assert key.stride(2) == value.stride(2) == 1, "a head's elements lie side by side"
    assert key_cache.is_contiguous(), "a slot's elements lie side by side"
    assert value_cache.is_contiguous(), "a slot's elements lie side by side"
    _store[(num_tokens,)](
        key,
        value,
        key_cache,
        value_cache,
        slots,
        *key.stride()[:2],
        *value.stride()[:2],
        NUM_ELEMENTS=num_kv_heads * head_dim,
        HEAD_DIM=head_dim,
        TILE=triton.next_power_of_2(num_kv_heads * head_dim),
        enable_fp_fusion=True,
    )
