"""Linear layers for the `cpu` backend: weights packed once into tiles, one C loop for any number of tokens.

What is not bfloat16 goes the `torch` backend's way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.library import address, load_library, rows
from kernels.interface import GatedLinear, Linear
from kernels.torch import backend as torch_backend
from kernels.torch import linear as torch_linear

LANES = 16
"""Outputs of half a tile."""


@dataclass(frozen=True, slots=True)
class TiledLinear:
    """A weight [num_outputs, num_inputs] in tiles of 32 outputs; see `kernels/cpu/linear.cpp`."""

    tiles: Tensor
    bias: Tensor | None
    num_outputs: int
    num_inputs: int

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return _multiply(load_library().kvb_linear, self, x, torch.bfloat16, False)

    def wide(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return _multiply(load_library().kvb_linear, self, x, torch.float32, True)


@dataclass(frozen=True, slots=True)
class TiledGatedLinear:
    """A gated layer in tiles of 16 gates and the 16 ups that belong to them."""

    tiles: Tensor
    bias: Tensor | None
    num_outputs: int
    num_inputs: int

    def __call__(self, x: Tensor) -> Tensor:
        """See `GatedLinear`."""
        return _multiply(load_library().kvb_gated_linear, self, x, torch.bfloat16)


def _multiply(
    function: Callable[..., None],
    layer: TiledLinear | TiledGatedLinear,
    x: Tensor,
    dtype: torch.dtype,
    *options: bool,
) -> Tensor:
    """The library's `function` on x [T, in]: [T, out] in `dtype`."""
    assert (x.shape[1], x.dtype) == (layer.num_inputs, torch.bfloat16), (x.shape, x.dtype)
    x = rows(x)
    out = torch.empty(len(x), layer.num_outputs, dtype=dtype)
    function(
        address(layer.tiles),
        address(layer.bias),
        layer.num_outputs,
        layer.num_inputs,
        address(x),
        x.stride(0),
        len(x),
        address(out),
        *options,
        torch.get_num_threads(),
    )
    return out


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """See `PackLinear`."""
    if weight.dtype != torch.bfloat16:
        return torch_linear.pack_linear(weight, bias)
    return TiledLinear(_tiles(weight), bias, *weight.shape)


def pack_gated_linear(weight: Tensor, bias: Tensor | None = None) -> GatedLinear:
    """See `PackGatedLinear`."""
    if weight.dtype != torch.bfloat16:
        return torch_backend.KERNELS.pack_gated_linear(weight, bias)
    num_outputs, num_inputs = weight.shape[0] // 2, weight.shape[1]
    tiled_bias = None if bias is None else _interleaved(bias)
    return TiledGatedLinear(_tiles(_interleaved(weight)), tiled_bias, num_outputs, num_inputs)


def _interleaved(halves: Tensor) -> Tensor:
    """[2N, …] → 16 rows of the first half, 16 of the second, and so on; zeros fill up the last of them."""
    gate, up = halves.chunk(2)
    num_groups = -(-len(gate) // LANES)
    grouped = halves.new_zeros(2, num_groups * LANES, *halves.shape[1:])
    grouped[0, : len(gate)], grouped[1, : len(up)] = gate, up
    return grouped.view(2, num_groups, LANES, *halves.shape[1:]).transpose(0, 1).flatten(0, 2)


def _tiles(weight: Tensor) -> Tensor:
    """The weight's tiles, one after another."""
    library = load_library()
    weight = weight.contiguous()
    tiles = torch.empty(library.kvb_packed_size(*weight.shape), dtype=weight.dtype)
    library.kvb_pack(address(weight), *weight.shape, address(tiles), torch.get_num_threads())
    return tiles
