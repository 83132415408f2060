"""Linear layers for the `cpu` backend: weights packed once into tiles, one C loop for any number of tokens.

What is not bfloat16 goes the `torch` backend's way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import torch_linear
from kernels.cpu_library import address, load_library
from kernels.interface import Linear


@dataclass(frozen=True, slots=True)
class TiledLinear:
    """A weight [num_outputs, num_inputs] in tiles of 32 outputs; see `kernels/cpu/linear.cpp`."""

    tiles: Tensor
    bias: Tensor | None
    num_outputs: int
    num_inputs: int

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return self._multiply(x, torch.bfloat16)

    def wide(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return self._multiply(x, torch.float32)

    def _multiply(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.stride(-1) != 1:
            x = x.contiguous()
        out = torch.empty(len(x), self.num_outputs, dtype=dtype)
        load_library().kvb_linear(
            address(self.tiles),
            address(self.bias),
            self.num_outputs,
            self.num_inputs,
            address(x),
            x.stride(0),
            len(x),
            address(out),
            dtype == torch.float32,
            torch.get_num_threads(),
        )
        return out


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """See `PackLinear`."""
    if weight.dtype != torch.bfloat16:
        return torch_linear.pack_linear(weight, bias)
    num_outputs, num_inputs = weight.shape
    library = load_library()
    tiles = torch.empty(library.kvb_packed_size(num_outputs, num_inputs), dtype=weight.dtype)
    weight = weight.contiguous()
    library.kvb_pack(address(weight), num_outputs, num_inputs, address(tiles), torch.get_num_threads())
    return TiledLinear(tiles, bias, num_outputs, num_inputs)
