"""The `triton` backend: kernels of its own for the ops of every layer, the `torch` backend's for the rest."""

from __future__ import annotations

from dataclasses import replace

from kernels import (
    torch_backend,
    triton_activation,
    triton_attention,
    triton_cache,
    triton_norm,
    triton_rotary,
)
from kernels.gated_linear import by_parts

KERNELS = replace(
    torch_backend.KERNELS,
    name="triton",
    store_kv=triton_cache.store_kv,
    plan_attention=triton_attention.plan_attention,
    rms_norm=triton_norm.rms_norm,
    fused_add_rms_norm=triton_norm.fused_add_rms_norm,
    rotary_embedding=triton_rotary.rotary_embedding,
    silu_and_mul=triton_activation.silu_and_mul,
    pack_gated_linear=by_parts(torch_backend.KERNELS.pack_linear, triton_activation.silu_and_mul),
)
