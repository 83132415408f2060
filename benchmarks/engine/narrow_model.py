"""A model with almost no width: what a step of it takes is overhead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from app.models.store import resolve_model
from app.settings.model import ModelConfig

HIDDEN, INNER, VOCAB, HEADS = 32, 32, 512, 1
MAX_POSITIONS = 2048


def write_served_model(
    folder: Path, num_layers: int, *, vocab: int = VOCAB, spread: float = 0.1, tied: bool = True
) -> Path:
    """Write a random Llama of `num_layers` layers in the Hugging Face layout; returns `folder`.

    It has the default model's tokenizer, of which it knows `vocab` tokens, and so can be served.

    Args:
        folder: where to; made here.
        num_layers: more make a step longer.
        vocab: tokens that it knows.
        spread: standard deviation of the weights.
        tied: whether the output layer is the embedding; then it mostly repeats the last token.
    """
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve_model(ModelConfig()) / name, folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        for name in ("q", "k", "v", "o"):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        for name, shape in {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}.items():
            shapes[f"{prefix}.mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (vocab, HIDDEN)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * spread for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return folder
