"""A model folder's `config.json` as the engine understands it, or a refusal that says what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.engine.torch.model.families import FAMILIES, Family, Windows
from app.engine.torch.model.rope_settings import Rope, read_rope
from app.errors import UnsupportedModelError
from app.models.folder import read_config, read_json

_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_COUNTS_WITH_DEFAULTS = ("num_key_value_heads", "head_dim")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a model, with names of Hugging Face's configs where they have one.

    Attributes:
        qkv_bias, output_bias: whether attention's linear layers have biases.
        qk_norm: whether each query and key head is normalised before it is rotated.
        sliding_windows: one per layer: how many tokens, itself included, each token reads; None for all.
    """

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
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: Windows
    checkpoint_dtype: str | None
    eos_token_ids: tuple[int, ...]

    @property
    def num_weights(self) -> int:
        """Numbers to hold in memory. A tied output layer counts: kernels may keep it in a second layout."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        layer = self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size + 2)
        return self.num_hidden_layers * layer + self.hidden_size * (2 * self.vocab_size + 1)

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token's keys and values in all layers, `itemsize` for each number."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * itemsize


def read_architecture(model_dir: Path) -> Architecture:
    """What `config.json` and, if there, `generation_config.json` in `model_dir` say.

    Raises:
        ModelNotFoundError: no `config.json`.
        UnsupportedModelError: a family or a feature that isn't built here.
    """
    file = model_dir / "config.json"
    config = read_config(model_dir)
    generation = read_json(model_dir / "generation_config.json") or {}
    try:
        family = _family(config)
        return _architecture(family, {**family.defaults, **config}, generation)
    except KeyError as error:
        raise UnsupportedModelError(f"{file}: no key {error}") from None
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{file}: {error}") from None


def _family(config: Mapping[str, Any]) -> Family:
    names = config.get("architectures") or ["(none)"]
    if not isinstance(names, list):
        raise UnsupportedModelError(f"architectures = {names!r}: a list of names is needed")
    if names[0] not in FAMILIES:
        raise UnsupportedModelError(
            f"architecture {names[0]} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[names[0]]


def _architecture(family: Family, config: dict[str, Any], generation: dict[str, Any]) -> Architecture:
    _check_supported(config)
    for key in _COUNTS:
        _check_count(key, config[key])
    for key in _COUNTS_WITH_DEFAULTS:
        if config.get(key) is not None:
            _check_count(key, config[key])
    if (config.get("head_dim") or 0) % 2:
        raise UnsupportedModelError(f"head_dim = {config['head_dim']}: an even number is needed")

    def has(bias: bool | str) -> bool:
        return bool(config.get(bias, False)) if isinstance(bias, str) else bias

    num_heads = config["num_attention_heads"]
    return Architecture(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=num_heads,
        num_key_value_heads=_num_key_value_heads(config),
        head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config["rms_norm_eps"],
        rope=read_rope(config),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=has(family.qkv_bias),
        output_bias=has(family.output_bias),
        mlp_bias=has(family.mlp_bias),
        qk_norm=family.qk_norm,
        sliding_windows=family.windows(config),
        checkpoint_dtype=config.get("dtype") or config.get("torch_dtype"),
        eos_token_ids=_eos(generation) or _eos(config),
    )


def _check_count(key: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise UnsupportedModelError(f"{key} = {value!r}: a positive integer is needed")


def _check_supported(config: Mapping[str, Any]) -> None:
    # "swish" is transformers' other name of silu.
    allowed = {"hidden_act": ("silu", "swish"), "quantization_config": (None,), "compression_config": (None,)}
    for key, values in allowed.items():
        if (given := config.get(key, values[0])) not in values:
            raise UnsupportedModelError(f"{key} = {given!r} is not supported; supported: {values[0]!r}")


def _num_key_value_heads(config: Mapping[str, Any]) -> int:
    num_heads = config["num_attention_heads"]
    num_kv_heads: int = config.get("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise UnsupportedModelError(
            f"num_key_value_heads = {num_kv_heads}: num_attention_heads = {num_heads} is no multiple of it"
        )
    return num_kv_heads


def _eos(config: Mapping[str, Any]) -> tuple[int, ...]:
    ids = config.get("eos_token_id")
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)
