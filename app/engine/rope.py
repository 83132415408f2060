"""Rotary position embedding: its settings and its angles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """How Llama 3.1 stretches slow rotations over a longer context than it was trained on."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class Rope:
    """The base of the rotations' geometric series, and its scaling if any."""

    theta: float
    scaling: Llama3Scaling | None = None

    def angles(self, head_dim: int, num_positions: int) -> Tensor:
        """Radians [num_positions, head_dim / 2] in float32: position times frequency of each pair."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = self.theta**-exponents
        if self.scaling is not None:
            frequencies = _scale(frequencies, self.scaling)
        return torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)


def _scale(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Fast rotations stay, slow ones are slowed by the factor, those between are blended.

    Source: `_compute_llama3_parameters` of transformers.
    """
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor
