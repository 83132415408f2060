"""Rotary position embedding: its settings, and the cosines and sines that they give.

Source: arXiv:2104.09864, and `modeling_rope_utils.py` of transformers for every scaling, operation by
operation: an angle is position times frequency, so that a frequency's last bit is seen at long contexts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from app.errors import UnsupportedModelError


class Scaling(Protocol):
    """How rotations are changed for a longer context than the model was first trained on."""

    def frequencies(self, theta: float, head_dim: int) -> Tensor:
        """Radians per position [head_dim / 2], fastest first, in float32."""
        ...

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by."""
        ...


@dataclass(frozen=True, slots=True)
class NoScaling:
    """The geometric series of the original."""

    attention_factor: float = 1.0

    def frequencies(self, theta: float, head_dim: int) -> Tensor:
        """See `Scaling`."""
        return 1.0 / _positions_per_radian(theta, head_dim)


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All rotations slowed alike. Source: arXiv:2306.15595."""

    factor: float
    attention_factor: float = 1.0

    def frequencies(self, theta: float, head_dim: int) -> Tensor:
        """See `Scaling`."""
        return 1.0 / _positions_per_radian(theta, head_dim) / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1: fast rotations stay, slow ones are slowed by the factor, those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    attention_factor: float = 1.0

    def frequencies(self, theta: float, head_dim: int) -> Tensor:
        """See `Scaling`."""
        plain = 1.0 / _positions_per_radian(theta, head_dim)
        turns = self.original_max_position_embeddings / (2 * math.pi / plain)
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - kept) * plain / self.factor + kept * plain


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN: as Llama 3.1, but blended linearly along the pairs' indices. Source: arXiv:2309.00071."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float  # turns in the original context from which on a rotation is kept
    beta_slow: float  # turns up to which it is slowed by the whole factor
    truncate: bool  # whether the pairs between are counted in whole numbers

    def frequencies(self, theta: float, head_dim: int) -> Tensor:
        """See `Scaling`."""
        slowness = _positions_per_radian(theta, head_dim)
        low, high = self._blended_pairs(theta, head_dim)
        ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
        kept = 1 - ramp.clamp(0, 1)
        return 1.0 / (self.factor * slowness) * (1 - kept) + 1.0 / slowness * kept

    def _blended_pairs(self, theta: float, head_dim: int) -> tuple[float, float]:
        """The indices between which rotations go from kept to slowed."""

        def pair_that_turns(times: float) -> float:
            turns = self.original_max_position_embeddings / (times * 2 * math.pi)
            return head_dim * math.log(turns) / (2 * math.log(theta))

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        return low, high + 0.001 if low == high else high


@dataclass(frozen=True, slots=True)
class Rope:
    """The base of the rotations' geometric series, and its scaling."""

    theta: float
    scaling: Scaling = NoScaling()

    def cos_sin(self, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
        """Of positions 0 to num_positions - 1: each [num_positions, head_dim / 2] in float32."""
        frequencies = self.scaling.frequencies(self.theta, head_dim)
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
        factor = self.scaling.attention_factor
        return angles.cos() * factor, angles.sin() * factor


def read_rope(config: Mapping[str, Any]) -> Rope:
    """From `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before).

    Raises:
        UnsupportedModelError: a kind of scaling, or of rotation, that isn't built here.
        KeyError: a number that the scaling needs isn't given.
    """
    settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if nested := [key for key, value in settings.items() if isinstance(value, Mapping)]:
        raise UnsupportedModelError(f"rope settings of their own for {', '.join(nested)} are not supported")
    theta = settings.get("rope_theta") or config.get("rope_theta") or 10_000.0
    share = settings.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise UnsupportedModelError(f"partial_rotary_factor = {share!r} is not supported; supported: 1.0")
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in _SCALINGS:
        raise UnsupportedModelError(
            f"rope scaling {kind!r} is not supported; supported: {', '.join(_SCALINGS)}"
        )
    return Rope(theta, _SCALINGS[kind](settings, config))


def _read_yarn(settings: Mapping[str, Any], config: Mapping[str, Any]) -> YarnScaling:
    original = _original_context(settings, config)
    factor = settings["factor"] or config["max_position_embeddings"] / original
    attention_factor = settings.get("attention_factor")
    if attention_factor is None:
        attention_factor = _yarn_attention_factor(
            factor, settings.get("mscale") or 0, settings.get("mscale_all_dim") or 0
        )
    return YarnScaling(
        factor,
        original,
        attention_factor,
        settings.get("beta_fast") or 32,
        settings.get("beta_slow") or 1,
        settings.get("truncate", True),
    )


def _yarn_attention_factor(factor: float, mscale: float, mscale_all_dim: float) -> float:
    def temper(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if mscale and mscale_all_dim:
        return temper(mscale) / temper(mscale_all_dim)
    return temper(1)


def _read_llama3(settings: Mapping[str, Any], config: Mapping[str, Any]) -> Llama3Scaling:
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    return Llama3Scaling(settings["factor"], low, high, _original_context(settings, config))


def _original_context(settings: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    key = "original_max_position_embeddings"
    context: int = config.get(key) or settings.get(key) or config["max_position_embeddings"]
    return context


def _positions_per_radian(theta: float, head_dim: int) -> Tensor:
    """Of each pair [head_dim / 2], unscaled."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    slowness: Tensor = theta**exponents
    return slowness


_SCALINGS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Scaling]] = {
    "default": lambda settings, config: NoScaling(),
    "linear": lambda settings, config: LinearScaling(settings["factor"]),
    # Stretches only beyond `max_position_embeddings`, which nothing served here is.
    "dynamic": lambda settings, config: NoScaling(),
    "llama3": _read_llama3,
    "yarn": _read_yarn,
}
