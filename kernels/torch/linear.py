"""Linear layers for the `torch` backend.

On a cpu, float32 weights are reordered once for oneDNN: measured on 2 Zen 3 cores over SmolLM2-135M's layers,
28 -> 20 ms for 1 token, 49 -> 22 ms for 2, 49 -> 30 ms for 8, 80 -> 66 ms for 32, and no difference for 512.

oneDNN compiles code for each number of tokens that is new to it, which takes milliseconds, and some of it is
never freed: a process grew by hundreds of MiB while prompts came in ever new lengths. So only some numbers
are computed (`padded_rows`), and rows of zeros fill the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.interface import Linear

# oneDNN picks the layout for a batch of this many tokens; measured best over 1 to 512.
PACKED_FOR_TOKENS = 128
EXACT_ROWS = 32
"""Up to so many tokens, which are batches of decoding, none is added."""


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
        num_rows = len(x)
        x = F.pad(x, (0, 0, 0, padded_rows(num_rows) - num_rows))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out[:num_rows]

    def wide(self, x: Tensor) -> Tensor:
        """See `Linear`. Packed weights are in float32."""
        return self(x)


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """See `PackLinear`."""
    if not _packs(weight):
        return TorchLinear(weight, bias)
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR_TOKENS)
    return PackedLinear(packed, bias)


def padded_rows(num_rows: int) -> int:
    """How many rows are computed for so many: the next multiple of 8, or of a sixteenth of a power of two.

    That is at most an eighth more beyond 64, and 76 numbers up to 2,048.
    """
    if num_rows <= EXACT_ROWS:
        return num_rows
    step = max(8, 1 << (num_rows - 1).bit_length() - 4)
    return -(-num_rows // step) * step


def _packs(weight: Tensor) -> bool:
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_plain and torch.backends.mkldnn.is_available()
