"""Rotary position embedding: the cosines and sines that its settings give.

Operation by operation as in `modeling_rope_utils.py` of transformers: an angle is position times frequency,
so that a frequency's last bit is seen at long contexts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from app.engine.torch.model.rope_settings import (
    LinearScaling,
    Llama3Scaling,
    NoScaling,
    Rope,
    Scaling,
    YarnScaling,
)


def cos_sin(rope: Rope, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
    """Of positions 0 to num_positions - 1: each [num_positions, head_dim / 2] in float32."""
    frequencies = _frequencies(rope.scaling, _positions_per_radian(rope.theta, head_dim), rope.theta)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    factor = rope.scaling.attention_factor
    return angles.cos() * factor, angles.sin() * factor


def _frequencies(scaling: Scaling, slowness: Tensor, theta: float) -> Tensor:
    """Radians per position [head_dim / 2], fastest first, in float32; `slowness` is their plain inverse."""
    match scaling:
        case NoScaling():
            return 1.0 / slowness
        case LinearScaling():
            return 1.0 / slowness / scaling.factor
        case Llama3Scaling():
            return _llama3(scaling, 1.0 / slowness)
        case YarnScaling():
            return _yarn(scaling, slowness, theta)


def _llama3(scaling: Llama3Scaling, plain: Tensor) -> Tensor:
    turns = scaling.original_max_position_embeddings / (2 * math.pi / plain)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(scaling: YarnScaling, slowness: Tensor, theta: float) -> Tensor:
    num_pairs = len(slowness)
    low, high = _blended_pairs(scaling, theta, 2 * num_pairs)
    ramp = (torch.arange(num_pairs, dtype=torch.float32) - low) / (high - low)
    kept = 1 - ramp.clamp(0, 1)
    return 1.0 / (scaling.factor * slowness) * (1 - kept) + 1.0 / slowness * kept


def _blended_pairs(scaling: YarnScaling, theta: float, head_dim: int) -> tuple[float, float]:
    """The indices between which rotations go from kept to slowed."""

    def pair_that_turns(times: float) -> float:
        turns = scaling.original_max_position_embeddings / (times * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high + 0.001 if low == high else high


def _positions_per_radian(theta: float, head_dim: int) -> Tensor:
    """Of each pair [head_dim / 2], unscaled."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    slowness: Tensor = theta**exponents
    return slowness
