"""The `cpu` backend: C++ for bfloat16 on AVX-512 (`kernels/cpu`), torch for everything else."""

from __future__ import annotations

from dataclasses import replace

from kernels.cpu import attention as cpu_attention
from kernels.cpu import elementwise as cpu_elementwise
from kernels.cpu import linear as cpu_linear
from kernels.torch import backend as torch_backend

KERNELS = replace(
    torch_backend.KERNELS,
    name="cpu",
    store_kv=cpu_elementwise.store_kv,
    plan_attention=cpu_attention.plan_attention,
    rms_norm=cpu_elementwise.rms_norm,
    fused_add_rms_norm=cpu_elementwise.fused_add_rms_norm,
    rotary_embedding=cpu_elementwise.rotary_embedding,
    silu_and_mul=cpu_elementwise.silu_and_mul,
    pack_linear=cpu_linear.pack_linear,
    pack_gated_linear=cpu_linear.pack_gated_linear,
)
