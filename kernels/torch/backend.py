"""The `torch` backend: runs wherever torch does."""

from __future__ import annotations

from kernels.interface import Kernels
from kernels.torch import attention as torch_attention
from kernels.torch import attention_states as torch_attention_states
from kernels.torch import cache as torch_cache
from kernels.torch import elementwise as torch_elementwise
from kernels.torch import linear as torch_linear
from kernels.torch import sampling as torch_sampling
from kernels.unfused_gated_linear import unfused_gated_linear

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
    pack_gated_linear=unfused_gated_linear(torch_linear.pack_linear, torch_elementwise.silu_and_mul),
)
