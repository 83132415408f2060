"""Fixtures that several test files share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from app.config import ModelConfig
from app.models.store import resolve_model
from tests.support import examples  # noqa: F401  (registers the profile before the command line chooses it)

# Without a GPU, Triton's kernels run in its interpreter. Triton decides that when it is imported, which
# transformers may do first: so here, before any test file.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The embedded default model, fetched and converted once per machine."""
    return resolve_model(ModelConfig())


@pytest.fixture(scope="session")
def new_tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a Llama with random float32 weights; keywords change its `config.json`."""

    def make(**changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("tiny-llama")
        config = TINY_LLAMA | changes
        (folder / "config.json").write_text(json.dumps(config))
        save_file(_random_weights(config), folder / "model.safetensors")
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_llama_dir(new_tiny_llama: Callable[..., Path]) -> Path:
    """A Llama of 2 layers, 4 query heads over 2 key/value heads, a vocabulary of 512 and a context of 256."""
    return new_tiny_llama()


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


def _random_weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
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
