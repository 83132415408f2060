"""The `torch` backend: runs wherever torch does."""

from __future__ import annotations

from kernels import (
    torch_attention,
    torch_attention_states,
    torch_cache,
    torch_elementwise,
    torch_linear,
    torch_sampling,
)
from kernels.gated_linear import by_parts
from kernels.interface import Kernels

KERNELS = Kernels(
    name="torch",
    store_kv=torch_cache.store_kv,
    copy_blocks=torch_cache.copy_blocks,
    swap_blocks=torch_cache.swap_blocks,
    plan_attention=torch_attention.plan_attention,
    merge_attention_states=torch_attention_states.merge_attention_states,
    rms_norm=torch_elementwise.rms_norm,
    fused_add_rms_norm=torch_elementwise.fused_add_rms_norm,
    rotary_embedding=torch_elementwise.rotary_embedding,
    silu_and_mul=torch_elementwise.silu_and_mul,
    top_k_top_p=torch_sampling.top_k_top_p,
    pack_linear=torch_linear.pack_linear,
    pack_gated_linear=by_parts(torch_linear.pack_linear, torch_elementwise.silu_and_mul),
)
