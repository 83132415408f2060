"""A model of a few hundred weights, written as llama.cpp's converter writes its GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 16, 2, 4, 2, 4, 24
TOKENS = ["<s>", "</s>", "a", "b", "c", "Ġ", "0", "1", "ab", "Ġa", "01"]
MERGES = ["a b", "Ġ a", "0 1"]
TEMPLATE = "{{ messages[0].content }}"

Weights = dict[str, npt.NDArray[np.float32]]


def write_tiny_gguf(
    file: Path,
    *,
    architecture: str = "llama",
    tied: bool = True,
    extra: Weights | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Weights:
    """Write `file`; returns the weights by their Hugging Face names, as they should come back.

    Args:
        file: where to.
        architecture: `llama`, `qwen2` or `qwen3`.
        tied: whether the output layer is the embedding.
        extra: further tensors by their GGUF names.
        metadata: what to write beside or instead of a small model's own metadata.
    """
    writer = gguf.GGUFWriter(str(file), architecture)
    written = {key.format(arch=architecture): value for key, value in _METADATA.items()}
    for key, value in (written | dict(metadata or {})).items():
        kind = gguf.GGUFValueType.get_type(value)
        if kind == gguf.GGUFValueType.INT32:
            kind = gguf.GGUFValueType.UINT32
        writer.add_key_value(key, value, kind)
    weights = _weights(architecture, tied)
    for name, weight in weights.items():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        as_written = _permuted(weight, heads) if architecture == "llama" and heads is not None else weight
        writer.add_tensor(_gguf_name(architecture, name), as_written)
    for name, weight in (extra or {}).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


_METADATA: dict[str, Any] = {
    "{arch}.block_count": LAYERS,
    "{arch}.context_length": 128,
    "{arch}.embedding_length": HIDDEN,
    "{arch}.feed_forward_length": INNER,
    "{arch}.attention.head_count": HEADS,
    "{arch}.attention.head_count_kv": KV_HEADS,
    "{arch}.rope.freq_base": 100000.0,
    "{arch}.attention.layer_norm_rms_epsilon": 1e-5,
    "{arch}.rope.dimension_count": HEAD_DIM,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3] + [1] * (len(TOKENS) - 2),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": TEMPLATE,
}


def _weights(architecture: str, tied: bool) -> Weights:
    shapes = {"model.embed_tokens.weight": (len(TOKENS), HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not tied:
        shapes["lm_head.weight"] = (len(TOKENS), HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"
        heads = {"q_proj": HEADS * HEAD_DIM, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM}
        shapes |= {f"{attention}.{name}.weight": (size, HIDDEN) for name, size in heads.items()}
        if architecture == "qwen2":
            shapes |= {f"{attention}.{name}.bias": (size,) for name, size in heads.items()}
        if architecture == "qwen3":
            shapes |= {f"{attention}.{name}_norm.weight": (HEAD_DIM,) for name in "qk"}
        shapes |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{attention}.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _gguf_name(architecture: str, name: str) -> str:
    [number] = [key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture]
    return gguf.get_tensor_name_map(number, LAYERS).get_name(name, (".weight", ".bias")) or name


def _permuted(weight: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """llama.cpp's `LlamaModel.permute`."""
    rows = weight.shape[0]
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape).copy()
