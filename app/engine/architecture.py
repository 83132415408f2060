"""A model folder's `config.json` as the engine understands it, or a refusal that says what it lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.engine.rope import Llama3Scaling, Rope
from app.errors import ModelNotFoundError, UnsupportedModelError

SUPPORTED = ("LlamaForCausalLM",)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a Llama model. Names are those of Hugging Face's `LlamaConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    checkpoint_dtype: str | None
    eos_token_ids: tuple[int, ...]

    @property
    def num_weights(self) -> int:
        """Numbers to hold in memory. A tied output layer counts: kernels may keep it in a second layout."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        layer = self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size + 2)
        return self.num_hidden_layers * layer + self.hidden_size * (2 * self.vocab_size + 1)


def read_architecture(model_dir: Path) -> Architecture:
    """What `config.json` and, if there, `generation_config.json` in `model_dir` say.

    Raises:
        ModelNotFoundError: no `config.json`.
        UnsupportedModelError: not a Llama, or one with a feature that isn't built here.
    """
    config = _read_json(model_dir / "config.json")
    if config is None:
        raise ModelNotFoundError(
            f"{model_dir}: no config.json; a folder in the Hugging Face layout is needed"
        )
    _check_supported(model_dir, config)
    generation = _read_json(model_dir / "generation_config.json") or {}
    try:
        return _architecture(model_dir, config, generation)
    except KeyError as error:
        raise UnsupportedModelError(f"{model_dir}/config.json: no key {error}") from None


def _architecture(model_dir: Path, config: dict[str, Any], generation: dict[str, Any]) -> Architecture:
    num_heads = config["num_attention_heads"]
    return Architecture(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=num_heads,
        num_key_value_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config["rms_norm_eps"],
        rope=_rope(model_dir, config),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        checkpoint_dtype=config.get("dtype") or config.get("torch_dtype"),
        eos_token_ids=_eos(generation) or _eos(config),
    )


def _check_supported(model_dir: Path, config: Mapping[str, Any]) -> None:
    names = config.get("architectures") or ["(none)"]
    if names[0] not in SUPPORTED:
        raise UnsupportedModelError(
            f"{model_dir}: architecture {names[0]} is not supported; supported: {', '.join(SUPPORTED)}"
        )
    needed = {"hidden_act": ("silu", "silu"), "quantization_config": (None, None)}
    for key, (default, value) in needed.items():
        if (given := config.get(key, default)) != value:
            raise UnsupportedModelError(
                f"{model_dir}: {key} = {given!r} is not supported; supported: {value!r}"
            )


def _rope(model_dir: Path, config: Mapping[str, Any]) -> Rope:
    """From `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before)."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = settings.get("rope_theta") or config.get("rope_theta") or 10_000.0
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    if kind != "llama3":
        raise UnsupportedModelError(
            f"{model_dir}: rope scaling {kind!r} is not supported; supported: 'default', 'llama3'"
        )
    return Rope(theta, Llama3Scaling(**{key: settings[key] for key in Llama3Scaling.__slots__}))


def _eos(config: Mapping[str, Any]) -> tuple[int, ...]:
    ids = config.get("eos_token_id")
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UnsupportedModelError(f"{path}: not JSON: {error}") from None
    return content
