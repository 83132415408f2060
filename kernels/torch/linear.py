"""Linear layers for the `torch` backend.

On a cpu, float32 weights are reordered once for oneDNN: measured on 2 Zen 3 cores over SmolLM2-135M's layers,
28 -> 20 ms for 1 token, 49 -> 22 ms for 2, 49 -> 30 ms for 8, 80 -> 66 ms for 32, and no difference for 512.

oneDNN compiles each layer again for each new number of tokens, and keeps what it compiled: a quarter of a MiB
and more. By default it keeps 1,024 of them, so a process grew by hundreds of MiB while prompts came in ever
new lengths. Fewer are kept here: batches of decoding recur, lengths of prompts hardly do.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.interface import Linear

# oneDNN picks the layout for a batch of this many tokens; measured best over 1 to 512.
PACKED_FOR_TOKENS = 128
KEPT_PRIMITIVES = 512
"""Of oneDNN's: two for each shape of a layer and number of tokens, so those of 50 sizes of a batch."""
CAPACITY_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""oneDNN reads it when it compiles the first time."""


@dataclass(frozen=True, slots=True)
class TorchLinear:
    """A weight as it is."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return F.linear(x, self.weight, self.bias)

    def wide(self, x: Tensor) -> Tensor:
        """See `Linear`. Torch rounds to x's dtype first."""
        return self(x).to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight in oneDNN's own layout."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out

    def wide(self, x: Tensor) -> Tensor:
        """See `Linear`. Packed weights are in float32."""
        return self(x)


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """See `PackLinear`."""
    if not _packs(weight):
        return TorchLinear(weight, bias)
    os.environ.setdefault(CAPACITY_VARIABLE, str(KEPT_PRIMITIVES))
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR_TOKENS)
    return PackedLinear(packed, bias)


def _packs(weight: Tensor) -> bool:
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_plain and torch.backends.mkldnn.is_available()
