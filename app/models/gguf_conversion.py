"""A GGUF file of a model of a supported family, rewritten in the Hugging Face layout.

    GGUF metadata  ──▶ config.json, generation_config.json (`gguf_config.py`)
    GGUF tokenizer ──▶ tokenizer.json, tokenizer_config.json with the chat template (`gguf_tokenizer.py`)
    GGUF tensors   ──▶ model.safetensors, bfloat16

The weights are stored in bfloat16: models are published in it, and rounding the dequantised values costs
1/60 of what the 4-bit quantisation already did (rms 2.6e-4 against 1.6e-2 for SmolLM2-135M's Q4_1 tensors;
norms stay exact). float32 would double the file, its load time and every rank's share of the page cache.

Sources: the GGUF specification of ggml, llama.cpp's convert_hf_to_gguf.py (names, q/k permutation), and the
safetensors format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from tqdm import tqdm

from app.errors import UnsupportedModelError
from app.models import gguf_config, gguf_tokenizer
from app.models.gguf_config import Float32, Metadata

REVISION = 1  # raise it when what `convert` writes changes, so that cached models are converted again

_ROPE_DIVISORS = "rope_freqs.weight"
_TOP_LEVEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
# Beyond those, by architecture.
_MORE_LAYER_NAMES = {
    "llama": {},
    "qwen2": {f"attn_{short}.bias": f"self_attn.{short}_proj.bias" for short in "qkv"},
    "qwen3": {f"attn_{short}_norm.weight": f"self_attn.{short}_norm.weight" for short in "qk"},
}


def convert(gguf_file: Path, folder: Path, *, progress: bool = False) -> None:
    """Write the model of `gguf_file` into the existing `folder`, with a bar on stderr if `progress`.

    Raises:
        UnsupportedModelError: not a GGUF file, or an architecture, tokenizer or tensor that this conversion
            doesn't know.
    """
    reader = _read(gguf_file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    gguf_config.check_supported(metadata)
    gguf_tokenizer.check_supported(metadata)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    divisors = tensors.pop(_ROPE_DIVISORS, None)
    config = gguf_config.config_json(
        metadata,
        tied="output.weight" not in tensors,
        rope_divisors=None if divisors is None else dequantize(divisors.data, divisors.tensor_type),
    )
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", gguf_config.generation_config_json(metadata))
    _write_json(folder / "tokenizer_config.json", gguf_tokenizer.tokenizer_config_json(metadata))
    gguf_tokenizer.tokenizer(metadata).save(str(folder / "tokenizer.json"))
    _write_weights(folder / "model.safetensors", list(tensors.values()), metadata, progress=progress)


def _read(gguf_file: Path) -> GGUFReader:
    try:
        return GGUFReader(gguf_file)
    except (
        ValueError,
        IndexError,
        KeyError,
    ) as error:  # what the library raises for the bytes of another format
        raise UnsupportedModelError(f"{gguf_file}: not a readable GGUF file: {error}") from error


def _write_weights(
    file: Path, tensors: Sequence[ReaderTensor], metadata: Metadata, *, progress: bool
) -> None:
    """safetensors, written tensor by tensor so that memory holds one of them at a time.

    | header length: uint64 LE | header: JSON, name → dtype, shape, [begin, end) | data, row-major, LE |
    """
    layer_names = _LAYER_NAMES | _MORE_LAYER_NAMES[metadata["general.architecture"]]
    names = [_hugging_face_name(tensor.name, layer_names) for tensor in tensors]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in zip(names, tensors, strict=True):
        begin, end = end, end + 2 * int(tensor.n_elements)
        # GGUF lists dimensions innermost first.
        shape = [int(size) for size in reversed(tensor.shape)]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for weight in _weights(tensors, metadata, progress=progress):
            out.write(_bfloat16(weight).tobytes())


def _hugging_face_name(name: str, layer_names: dict[str, str]) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    if name in _TOP_LEVEL_NAMES:
        return _TOP_LEVEL_NAMES[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    if not name.startswith("blk.") or rest not in layer_names:
        raise UnsupportedModelError(f"tensor {name!r} isn't part of the architecture built here")
    return f"model.layers.{block}.{layer_names[rest]}"


def _weights(tensors: Sequence[ReaderTensor], metadata: Metadata, *, progress: bool) -> Iterator[Float32]:
    # llama.cpp rotates row pairs (2i, 2i + 1) in its `llama` alone, and permutes q and k for it.
    permuted = {}
    if metadata["general.architecture"] == "llama":
        permuted["attn_q.weight"] = gguf_config.num_query_heads(metadata)
        permuted["attn_k.weight"] = gguf_config.num_kv_heads(metadata)
    for tensor in tqdm(tensors, desc="converting", unit="tensor", disable=not progress):
        weight = dequantize(tensor.data, tensor.tensor_type)
        num_heads = permuted.get(tensor.name.split(".", 2)[-1])
        yield weight if num_heads is None else _unpermute(weight, num_heads)


def _unpermute(weight: Float32, num_heads: int) -> Float32:
    """Rows of q or k, `[num_heads * head_dim, hidden]`, from interleaved rotary pairs to split halves.

    llama.cpp rotates row pairs (2i, 2i + 1), Hugging Face (i, i + head_dim / 2).
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def _bfloat16(values: Float32) -> npt.NDArray[np.uint16]:
    """The upper halves of the float32 bit patterns, rounded to nearest, ties to even. Finite values only."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded: npt.NDArray[np.uint32] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2")


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
