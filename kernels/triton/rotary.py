"""Rotary embedding for the `triton` backend: one program per token, all its heads at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.numerics import rounded


@triton.jit
def _rotate(
    x,
    cos,
    sin,
    out,
    stride_token,
    stride_head,
    stride_cos,
    stride_sin,
    NUM_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    HALF_TILE: tl.constexpr,
):
    """One token; HALF is D / 2."""
    token = tl.program_id(0).to(tl.int64)
    heads, dims = tl.arange(0, HEADS_TILE), tl.arange(0, HALF_TILE)
    is_pair = (heads < NUM_HEADS)[:, None] & (dims < HALF)[None, :]
    cosines = tl.load(cos + token * stride_cos + dims, mask=dims < HALF, other=0.0).to(tl.float32)[None, :]
    sines = tl.load(sin + token * stride_sin + dims, mask=dims < HALF, other=0.0).to(tl.float32)[None, :]
    places = token * stride_token + (heads * stride_head)[:, None] + dims[None, :]
    first = tl.load(x + places, mask=is_pair, other=0.0).to(tl.float32)
    second = tl.load(x + places + HALF, mask=is_pair, other=0.0).to(tl.float32)
    out_places = (token * NUM_HEADS + heads)[:, None] * (2 * HALF) + dims[None, :]
    dtype = out.dtype.element_ty
    tl.store(out + out_places, rounded(first * cosines - second * sines, dtype), mask=is_pair)
    tl.store(out + out_places + HALF, rounded(second * cosines + first * sines, dtype), mask=is_pair)


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `RotaryEmbedding`."""
    num_tokens, num_heads, head_dim = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if num_tokens == 0:
        return out
    assert x.stride(2) == cos.stride(1) == sin.stride(1) == 1, "a head's elements lie side by side"
    _rotate[(num_tokens,)](
        x,
        cos,
        sin,
        out,
        *x.stride()[:2],
        cos.stride(0),
        sin.stride(0),
        NUM_HEADS=num_heads,
        HALF=head_dim // 2,
        HEADS_TILE=triton.next_power_of_2(num_heads),
        HALF_TILE=triton.next_power_of_2(head_dim // 2),
        enable_fp_fusion=True,
    )
    return out
