"""A model's rotary position embedding as `config.json` describes it: the base and the scaling.

Source of every scaling: arXiv:2104.09864, and `modeling_rope_utils.py` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class NoScaling:
    """The geometric series of the original."""

    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All rotations slowed alike. Source: arXiv:2306.15595."""

    factor: float
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1: fast rotations stay, slow ones are slowed by the factor, those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN: as Llama 3.1, but blended linearly along the pairs' indices. Source: arXiv:2309.00071."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float  # turns in the original context from which on a rotation is kept
    beta_slow: float  # turns up to which it is slowed by the whole factor
    truncate: bool  # whether the pairs between are counted in whole numbers


Scaling = NoScaling | LinearScaling | Llama3Scaling | YarnScaling
"""How rotations are changed for a longer context than the model was first trained on; `attention_factor` is
what cosines and sines are multiplied by."""


@dataclass(frozen=True, slots=True)
class Rope:
    """The base of the rotations' geometric series, and its scaling."""

    theta: float
    scaling: Scaling = NoScaling()


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


_SCALINGS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Scaling]] = {
    "default": lambda settings, config: NoScaling(),
    "linear": lambda settings, config: LinearScaling(settings["factor"]),
    # Stretches only beyond `max_position_embeddings`, which nothing served here is.
    "dynamic": lambda settings, config: NoScaling(),
    "llama3": _read_llama3,
    "yarn": _read_yarn,
}
