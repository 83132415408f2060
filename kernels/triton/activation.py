"""SiLU and multiplication for the `triton` backend: one program per part of a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.numerics import rounded

MAX_TILE = 1024


@triton.jit
def _silu_and_mul(x, out, stride_x, SIZE: tl.constexpr, TILE: tl.constexpr):
    """Up to TILE of the SIZE columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_column = columns < SIZE
    gate = tl.load(x + row * stride_x + columns, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(x + row * stride_x + SIZE + columns, mask=is_column, other=0.0).to(tl.float32)
    result = rounded(gate * tl.sigmoid(gate) * up, out.dtype.element_ty)
    tl.store(out + row * SIZE + columns, result, mask=is_column)


def silu_and_mul(x: Tensor) -> Tensor:
    """See `SiluAndMul`."""
    num_rows, size = x.shape[0], x.shape[1] // 2
    out = torch.empty(num_rows, size, dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    assert x.stride(1) == 1, "a row's elements lie side by side"
    tile = min(triton.next_power_of_2(size), MAX_TILE)
    _silu_and_mul[(num_rows, triton.cdiv(size, tile))](
        x, out, x.stride(0), SIZE=size, TILE=tile, enable_fp_fusion=True
    )
    return out
