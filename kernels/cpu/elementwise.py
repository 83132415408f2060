"""The small ops of the `cpu` backend: one C call each, computed in float32 and rounded once.

What is not bfloat16 goes the `torch` backend's way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu.library import address, load_library, rows
from kernels.torch import cache as torch_cache
from kernels.torch import elementwise as torch_elementwise


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """See `StoreKv`."""
    if key.dtype != torch.bfloat16:
        return torch_cache.store_kv(key, value, key_cache, value_cache, slots)
    key, value = rows(key), rows(value)
    load_library().kvb_store_kv(
        address(key),
        key.stride(0),
        address(value),
        value.stride(0),
        address(key_cache),
        address(value_cache),
        address(slots),
        len(key),
        key.shape[1] * key.shape[2],
        torch.get_num_threads(),
    )
    return None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `RmsNorm`."""
    if not x.dtype == weight.dtype == torch.bfloat16:
        return torch_elementwise.rms_norm(x, weight, eps)
    flat = rows(x.reshape(-1, x.shape[-1]))
    out = torch.empty_like(flat, memory_format=torch.contiguous_format)
    load_library().kvb_rms_norm(
        address(flat),
        flat.stride(0),
        address(weight),
        address(out),
        *flat.shape,
        eps,
        torch.get_num_threads(),
    )
    return out.view(x.shape)


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `FusedAddRmsNorm`."""
    if not x.dtype == residual.dtype == weight.dtype == torch.bfloat16:
        return torch_elementwise.fused_add_rms_norm(x, residual, weight, eps)
    x, residual = x.contiguous(), residual.contiguous()
    width = x.shape[-1]
    out, total = torch.empty_like(x), torch.empty_like(x)
    load_library().kvb_fused_add_rms_norm(
        address(x),
        address(residual),
        address(weight),
        address(out),
        address(total),
        x.numel() // width,
        width,
        eps,
        torch.get_num_threads(),
    )
    return out, total


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `RotaryEmbedding`."""
    if x.dtype != torch.bfloat16:
        return torch_elementwise.rotary_embedding(x, cos, sin)
    x, cos, sin = rows(x), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    num_tokens, num_heads, head_dim = x.shape
    load_library().kvb_rotary_embedding(
        address(x),
        x.stride(0),
        address(cos),
        address(sin),
        address(out),
        num_tokens,
        num_heads,
        head_dim // 2,
        torch.get_num_threads(),
    )
    return out


def silu_and_mul(x: Tensor) -> Tensor:
    """See `SiluAndMul`."""
    if x.dtype != torch.bfloat16:
        return torch_elementwise.silu_and_mul(x)
    x = x.contiguous()
    num_tokens, width = x.shape
    out = x.new_empty(num_tokens, width // 2)
    load_library().kvb_silu_and_mul(address(x), address(out), num_tokens, width // 2, torch.get_num_threads())
    return out
