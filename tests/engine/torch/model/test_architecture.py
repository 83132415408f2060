"""What `config.json` says, and what it leaves out, means what it means to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from app.engine.torch.model.architecture import read_architecture

SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_hidden_layers": 30,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
}
WINDOW = {"use_sliding_window": True}
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Llama", {"num_key_value_heads": None, "head_dim": None}),
    ("Llama", {"sliding_window": 100, "attention_bias": True, "hidden_act": "silu"}),
    ("Mistral", {}),
    ("Mistral", {"sliding_window": None, "head_dim": 10}),
    ("Mistral", {"sliding_window": 100}),
    ("Qwen2", {}),
    ("Qwen2", {"sliding_window": 100, "num_key_value_heads": 4}),
    ("Qwen2", WINDOW),
    ("Qwen2", WINDOW | {"sliding_window": 100, "max_window_layers": 2}),
    ("Qwen2", WINDOW | {"sliding_window": None, "max_window_layers": 2}),
    ("Qwen2", WINDOW | {"max_window_layers": 99, "head_dim": 10}),
    ("Qwen3", {}),
    ("Qwen3", WINDOW | {"head_dim": 10}),
    ("Qwen3", WINDOW | {"layer_types": ["full_attention", "sliding_attention"] * 15}),
    ("Qwen3", {"layer_types": ["full_attention"] * 30, "attention_bias": True}),
]


@pytest.mark.parametrize(("family", "changes"), CONFIGS)
def test_as_in_transformers(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    names = {"architectures": [f"{family}ForCausalLM"], "model_type": family.lower()}
    (tmp_path / "config.json").write_text(json.dumps(SIZES | names | changes))
    ours, theirs = read_architecture(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert ours.num_key_value_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", SIZES["hidden_size"] // SIZES["num_attention_heads"])
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    types = ["full_attention"] * 30
    if family == "Mistral":
        types = ["sliding_attention"] * 30
    elif family != "Llama":
        types = theirs.layer_types
    assert ours.sliding_windows == tuple(
        theirs.sliding_window if each == "sliding_attention" else None for each in types
    )


@pytest.mark.parametrize(
    ("family", "bias", "expected"),
    [
        ("Llama", True, (True, True, False, False)),
        ("Mistral", True, (False, False, False, False)),
        ("Qwen2", False, (True, False, False, False)),
        ("Qwen3", False, (False, False, False, True)),
        ("Qwen3", True, (True, True, False, True)),
    ],
)
def test_biases_and_norms(family: str, bias: bool, expected: tuple[bool, ...], tmp_path: Path) -> None:
    config = SIZES | {"architectures": [f"{family}ForCausalLM"], "attention_bias": bias}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = read_architecture(tmp_path)
    assert (ours.qkv_bias, ours.output_bias, ours.mlp_bias, ours.qk_norm) == expected
