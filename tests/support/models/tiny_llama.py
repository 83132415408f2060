"""A Llama of two layers with random weights, in the Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,  # tied, random weights mostly repeat the last token
    "eos_token_id": 2,
}


def write_tiny_llama(folder: Path, changes: Mapping[str, Any]) -> None:
    """Write `config.json`, which is `TINY_LLAMA` with these changes, and the weights in float32."""
    config = TINY_LLAMA | dict(changes)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_random_weights(config), folder / "model.safetensors")


def _random_weights(config: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    linears = {"self_attn.q_proj": (query, hidden), "self_attn.k_proj": (kv, hidden)}
    linears |= {"self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, query)}
    linears |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)}
    linears |= {"mlp.down_proj": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, shape in linears.items():
            shapes[f"{prefix}.{name}.weight"] = shape
            if config["attention_bias" if name.startswith("self_attn") else "mlp_bias"]:
                shapes[f"{prefix}.{name}.bias"] = shape[:1]
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    # Wide enough that attention is not uniform and no two tokens are nearly as likely.
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
