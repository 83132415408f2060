"""The model families by their name in `config.json`, and what that file leaves to the family's own code.

All four are one model: RMS norms around grouped-query attention and a gated MLP. They differ in biases,
norms of query and key heads, sliding windows, and in what an absent key means. Source: the configuration and
modelling files of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.errors import UnsupportedModelError

Config = Mapping[str, Any]
Windows = tuple[int | None, ...]


def _no_windows(config: Config) -> Windows:
    num_layers: int = config["num_hidden_layers"]
    return (None,) * num_layers


def _one_window(config: Config) -> Windows:
    """Mistral: every layer has the window, null for none."""
    if config.get("layer_types") is not None:
        raise UnsupportedModelError("layer_types: a Mistral has one sliding_window for all layers")
    num_layers: int = config["num_hidden_layers"]
    return (_checked(config["sliding_window"]),) * num_layers


def _window_per_layer(config: Config) -> Windows:
    """Qwen: `layer_types` says which layers have the window, or else those from `max_window_layers` on."""
    num_layers, window = config["num_hidden_layers"], None
    if config["use_sliding_window"]:
        window = _checked(config["sliding_window"])
    types = config.get("layer_types")
    if types is None:
        first = config["max_window_layers"]
        return tuple(window if layer >= first else None for layer in range(num_layers))
    allowed = {"full_attention": None} | ({} if window is None else {"sliding_attention": window})
    if len(types) != num_layers or not set(types) <= allowed.keys():
        raise UnsupportedModelError(
            f"layer_types = {types!r}: {num_layers} entries are needed, each one of {', '.join(allowed)} "
            f"(use_sliding_window = {config['use_sliding_window']}, sliding_window = {window})"
        )
    return tuple(allowed[each] for each in types)


def _checked(window: Any) -> int | None:
    if window is not None and (not isinstance(window, int) or window < 1):
        raise UnsupportedModelError(f"sliding_window = {window!r}: a positive integer or null is needed")
    return window


@dataclass(frozen=True, slots=True)
class Family:
    """What sets a family apart.

    Attributes:
        qkv_bias, output_bias, mlp_bias: whether the linear layers have biases, or the key that says so.
        qk_norm: whether each query and key head is normalised before it is rotated.
        windows: the layers' sliding windows, from the config.
        defaults: what an absent key means; one that isn't here either must be in the file, or is null.
    """

    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    windows: Callable[[Config], Windows] = _no_windows
    defaults: Config = field(default_factory=dict)


_QWEN_DEFAULTS = {
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
FAMILIES = {
    "LlamaForCausalLM": Family(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    "MistralForCausalLM": Family(
        windows=_one_window, defaults={"num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "Qwen2ForCausalLM": Family(qkv_bias=True, windows=_window_per_layer, defaults=_QWEN_DEFAULTS),
    "Qwen3ForCausalLM": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        windows=_window_per_layer,
        defaults=_QWEN_DEFAULTS | {"head_dim": 128},
    ),
}
