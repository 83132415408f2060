"""Number formats of the `triton` backend's kernels, the same on a GPU and in Triton's interpreter.

Triton 3.9's interpreter keeps bfloat16 as the bits in a uint16. It multiplies those bits as integers, in
`tl.dot` and everywhere else, and a cast from float32 cuts bits off where a GPU rounds to nearest even. Its
`tl.dot` is numpy's, which adds up in an order of its own. So the kernels compute in float32, and use `dot`
and `rounded` here for the rest.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Whether the kernels of this process are interpreted. Triton decides it where it is imported and where each
# kernel is decorated; this is read in between.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b):
    """a [M, K] @ b [K, N] in float32; float32 operands are not cut to TF32."""
    if INTERPRETED:
        # Float64 leaves the kernel's own error; by way of float32, all that bfloat16 is cast to rightly.
        a = a.to(tl.float32).to(tl.float64)
        b = b.to(tl.float32).to(tl.float64)
        return tl.dot(a, b).to(tl.float32)
    else:  # noqa: RET505  Triton compiles an early return only so
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x, in float32, in `dtype`, to nearest even. x is not NaN."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)
