"""Merging attention states for the `torch` backend."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_attention_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """See `MergeAttentionStates`."""
    lse = torch.logaddexp(lse_a, lse_b)
    # Where nothing was read at all, -inf minus -inf would be NaN.
    shift = lse.masked_fill(lse == float("-inf"), 0)
    weight_a, weight_b = ((side - shift).exp_().unsqueeze(-1) for side in (lse_a, lse_b))
    # A side that read nothing may hold NaN, which a weight of 0 doesn't remove.
    out = torch.where(weight_a == 0, 0, weight_a * out_a) + torch.where(weight_b == 0, 0, weight_b * out_b)
    return out.to(out_a.dtype), lse
