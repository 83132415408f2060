"""RMS norm, with and without the residual's addition, for the `triton` backend: one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.numerics import rounded


@triton.jit
def _norm(
    x,
    residual,
    weight,
    out,
    total,
    eps,
    stride_x,
    stride_residual,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ADDS: tl.constexpr,
):
    """One row of SIZE elements; with ADDS, the row is residual + x, and is stored to `total` too."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, TILE)
    is_column = columns < SIZE
    values = tl.load(x + row * stride_x + columns, mask=is_column, other=0.0).to(tl.float32)
    if ADDS:
        added = tl.load(residual + row * stride_residual + columns, mask=is_column, other=0.0)
        rounded_sum = rounded(values + added.to(tl.float32), total.dtype.element_ty)
        tl.store(total + row * SIZE + columns, rounded_sum, mask=is_column)
        values = rounded_sum.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 0) / SIZE + eps)
    weights = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    normed = rounded(values * scale * weights, out.dtype.element_ty)
    tl.store(out + row * SIZE + columns, normed, mask=is_column)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `RmsNorm`."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x, None, weight, out, None, eps)
    return out


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `FusedAddRmsNorm`."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = torch.empty_like(out)
    _launch(x, residual, weight, out, total, eps)
    return out, total


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, total: Tensor | None, eps: float
) -> None:
    if x.numel() == 0:
        return
    size = x.shape[-1]
    # Of heads that are a slice of a wider row, this is a copy.
    x = x.reshape(-1, size)
    residual = None if residual is None else residual.reshape(-1, size)
    assert x.stride(1) == 1, "a row's elements lie side by side"
    assert residual is None or residual.stride(1) == 1, "a row's elements lie side by side"
    tile = triton.next_power_of_2(size)
    _norm[(len(x),)](
        x,
        residual,
        weight,
        out,
        total,
        eps,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        SIZE=size,
        TILE=tile,
        ADDS=residual is not None,
        num_warps=min(max(tile // 512, 1), 16),
        enable_fp_fusion=True,
    )
