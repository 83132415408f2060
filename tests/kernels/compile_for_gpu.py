"""Compile every launch of the `triton` backend for a GPU that needn't be there; print each kernel's needs.

Run in a process where Triton isn't interpreted. Arguments: the GPU's compute capability, as in 80.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

from kernels.triton.backend import KERNELS


class AbsentGpu:
    """Answers what Triton asks of a GPU before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """In place of `kernel[grid]`: compiles for the arguments of a launch, and launches nothing."""

    def launch(*args: Any, **kwargs: Any) -> None:
        compiled = kernel.run(*args, grid=grid, warmup=True, **kwargs)
        print(kernel.__name__, compiled.metadata.shared)

    return launch


def main() -> None:
    triton.runtime.driver.set_active(AbsentGpu())
    KernelInterface.__getitem__ = compile_only
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.zeros(3, 576, dtype=dtype), torch.zeros(576, dtype=dtype)
        KERNELS.rms_norm(x, weight, 1e-5)
        KERNELS.fused_add_rms_norm(x, x, weight, 1e-5)
        KERNELS.silu_and_mul(x)
        angles = torch.zeros(3, 40, dtype=dtype)
        heads = torch.zeros(3, 6, 80, dtype=dtype)
        KERNELS.rotary_embedding(heads, angles, angles)
        caches = torch.zeros(2, 4, 16, 2, 80, dtype=dtype)
        KERNELS.store_kv(heads[:, :2], heads[:, 2:4], caches[0], caches[1], torch.arange(3))
    attend(torch.bfloat16, 1, 128, 8, None)
    attend(torch.bfloat16, 3, 80, 3, 7)
    attend(torch.float32, 3, 256, 8, None)


def attend(dtype: torch.dtype, query_len: int, head_dim: int, group: int, sliding_window: int | None) -> None:
    tables = torch.zeros(1, 2, dtype=torch.int64)
    attention = KERNELS.plan_attention([query_len], [20], tables, 16, 1.0, sliding_window)
    query = torch.zeros(query_len, 2 * group, head_dim, dtype=dtype)
    caches = torch.zeros(2, 4, 16, 2, head_dim, dtype=dtype)
    attention(query, *caches)
    attention.with_lse(query, *caches)


if __name__ == "__main__":
    main()
