"""A gated linear layer out of two ops, for backends that have no fused one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.interface import Linear, PackGatedLinear, PackLinear, SiluAndMul


@dataclass(frozen=True, slots=True)
class UnfusedGatedLinear:
    """The linear layer, then the activation."""

    linear: Linear
    silu_and_mul: SiluAndMul

    def __call__(self, x: Tensor) -> Tensor:
        """See `GatedLinear`."""
        return self.silu_and_mul(self.linear(x))


def unfused_gated_linear(pack_linear: PackLinear, silu_and_mul: SiluAndMul) -> PackGatedLinear:
    """A `PackGatedLinear` made of a backend's own ops."""

    def pack_gated_linear(weight: Tensor, bias: Tensor | None = None) -> UnfusedGatedLinear:
        return UnfusedGatedLinear(pack_linear(weight, bias), silu_and_mul)

    return pack_gated_linear
