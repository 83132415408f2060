"""The `triton` backend: kernels of its own for the ops of every layer, the `torch` backend's for the rest."""

from __future__ import annotations

from dataclasses import replace

from kernels.torch import backend as torch_backend
from kernels.triton import activation as triton_activation
from kernels.triton import attention as triton_attention
from kernels.triton import cache as triton_cache
from kernels.triton import norm as triton_norm
from kernels.triton import rotary as triton_rotary
from kernels.unfused_gated_linear import unfused_gated_linear

KERNELS = replace(
    torch_backend.KERNELS,
    name="triton",
    store_kv=triton_cache.store_kv,
    plan_attention=triton_attention.plan_attention,
    rms_norm=triton_norm.rms_norm,
    fused_add_rms_norm=triton_norm.fused_add_rms_norm,
    rotary_embedding=triton_rotary.rotary_embedding,
    silu_and_mul=triton_activation.silu_and_mul,
    pack_gated_linear=unfused_gated_linear(torch_backend.KERNELS.pack_linear, triton_activation.silu_and_mul),
)
