"""A GGUF file's metadata as `config.json` and `generation_config.json`.

Sources: the GGUF specification of ggml, and llama.cpp's convert_hf_to_gguf.py, which writes such files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import UnsupportedModelError

Metadata = Mapping[str, Any]
Float32 = npt.NDArray[np.float32]

# The entries of `config.json` for each architecture beside its sizes. llama.cpp's `llama` includes Mistral.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False, "attention_bias": False},
}
# llama.cpp keeps Llama 3.1's scaling as a tensor of divisors. Of the parameters behind it, only the factor
# differs between the published models.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def check_supported(metadata: Metadata) -> None:
    """Check what can be checked before the tensors are read.

    Raises:
        UnsupportedModelError: an architecture that isn't converted here, or one part of a split file.
    """
    expect(metadata, "general.architecture", list(_FAMILIES))
    if metadata.get("split.count", 1) > 1:
        raise UnsupportedModelError(
            f"split.count = {metadata['split.count']}: only whole files are converted; "
            "join the parts with `llama-gguf-split --merge`"
        )


def expect(metadata: Metadata, key: str, allowed: list[str]) -> None:
    """Check one entry of the metadata.

    Raises:
        UnsupportedModelError: `key` isn't one of `allowed`.
    """
    if metadata.get(key) not in allowed:
        raise UnsupportedModelError(f"{key} = {metadata.get(key)!r}; this conversion knows {allowed}")


def config_json(metadata: Metadata, *, tied: bool, rope_divisors: Float32 | None) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        metadata: the GGUF file's.
        tied: whether the file has no output layer of its own.
        rope_divisors: the tensor `rope_freqs.weight`, if there is one.

    Raises:
        UnsupportedModelError: a rope scaling, or sizes of heads, that the engine doesn't have.
    """
    architecture = metadata["general.architecture"]
    family = _FAMILIES[architecture]
    hidden_size, num_heads = _of(metadata, "embedding_length"), _of(metadata, "attention.head_count")
    head_dim = _head_dim(metadata, hidden_size // num_heads)
    scaling = _rope_scaling(metadata, head_dim, rope_divisors)
    return {
        "architectures": family["architectures"],
        "model_type": architecture,
        "torch_dtype": "bfloat16",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": hidden_size,
        "intermediate_size": _of(metadata, "feed_forward_length"),
        "num_hidden_layers": _of(metadata, "block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads(metadata),
        "head_dim": head_dim,
        "max_position_embeddings": context_length(metadata),
        "rope_theta": _shortest(_of(metadata, "rope.freq_base", 10000.0)),
        **({} if scaling is None else {"rope_scaling": scaling}),
        "rms_norm_eps": _shortest(_of(metadata, "attention.layer_norm_rms_epsilon")),
        "hidden_act": "silu",
        **{key: value for key, value in family.items() if key != "architectures"},
        "tie_word_embeddings": tied,
        **special_ids(metadata),
    }


def generation_config_json(metadata: Metadata) -> dict[str, Any]:
    """The special tokens; where a model has an end of turn beside the end of text, both end an answer."""
    ids: dict[str, Any] = dict(special_ids(metadata))
    end_of_turn = metadata.get("tokenizer.ggml.eot_token_id")
    if end_of_turn is not None and end_of_turn != ids.get("eos_token_id"):
        ids["eos_token_id"] = [
            token_id for token_id in (ids.get("eos_token_id"), end_of_turn) if token_id is not None
        ]
    return ids


def special_ids(metadata: Metadata) -> dict[str, int]:
    """Ids by the names that Hugging Face's configs give them."""
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: token_id for name, token_id in ids.items() if token_id is not None}


def context_length(metadata: Metadata) -> int:
    """The model's context in tokens."""
    context: int = _of(metadata, "context_length")
    return context


def num_query_heads(metadata: Metadata) -> int:
    """Query heads of each layer."""
    heads: int = _of(metadata, "attention.head_count")
    return heads


def num_kv_heads(metadata: Metadata) -> int:
    """Key/value heads of each layer."""
    heads: int = _of(metadata, "attention.head_count_kv", num_query_heads(metadata))
    return heads


_REQUIRED = object()


def _of(metadata: Metadata, key: str, default: Any = _REQUIRED) -> Any:
    """The metadata's value of `key` under the architecture's own prefix."""
    name = f"{metadata['general.architecture']}.{key}"
    value = metadata.get(name, default)
    if value is _REQUIRED:
        raise UnsupportedModelError(f"no {name} in the file's metadata")
    if isinstance(value, list):
        raise UnsupportedModelError(f"{name} = {value}: layers of different shapes are not supported")
    return value


def _head_dim(metadata: Metadata, default: int) -> int:
    rotated = _of(metadata, "rope.dimension_count", None)
    head_dim: int = _of(metadata, "attention.key_length", rotated or default)
    if _of(metadata, "attention.value_length", head_dim) != head_dim or (rotated or head_dim) != head_dim:
        raise UnsupportedModelError("heads whose keys, values and rotations differ in size are not supported")
    return head_dim


def _rope_scaling(metadata: Metadata, head_dim: int, divisors: Float32 | None) -> dict[str, Any] | None:
    prefix = f"{metadata['general.architecture']}.rope.scaling."
    given = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    kind = given.pop("type", "none")
    if divisors is not None:
        return _llama3_scaling(_of(metadata, "rope.freq_base"), head_dim, divisors)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn") or not given.keys() <= {
        "factor",
        "original_context_length",
        "finetuned",
    }:
        raise UnsupportedModelError(f"rope scaling {kind!r} with {given} is not supported")
    scaling = {"rope_type": kind, "factor": _shortest(given["factor"])}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = given.get(
            "original_context_length", context_length(metadata)
        )
    return scaling


def _llama3_scaling(theta: float, head_dim: int, divisors: Float32) -> dict[str, Any]:
    """Llama 3.1's scaling that gives these divisors of the frequencies, fastest first."""
    factor = float(divisors.max())
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - kept) / factor + kept)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise UnsupportedModelError("tensor 'rope_freqs.weight' isn't Llama 3.1's scaling")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _shortest(value: float) -> float:
    """The shortest decimal number with the same float32: GGUF keeps 1e-05 as the float32 9.999999747e-06."""
    return float(str(np.float32(value)))
