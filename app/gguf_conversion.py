"""A GGUF file of a Llama-architecture model, rewritten in the Hugging Face layout.

    GGUF metadata  ──▶ config.json, generation_config.json
    GGUF tokenizer ──▶ tokenizer.json, tokenizer_config.json (with the chat template)
    GGUF tensors   ──▶ model.safetensors, bfloat16

The weights are stored in bfloat16: the model was published in it, and rounding the dequantised values costs
1/60 of what the 4-bit quantisation already did (rms 2.6e-4 against 1.6e-2 for SmolLM2-135M's Q4_1 tensors;
norms stay exact). float32 would double the file, its load time and every rank's share of the page cache.

Sources: the GGUF specification of ggml, llama.cpp's convert_hf_to_gguf.py (names, q/k permutation), and the
safetensors format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tqdm import tqdm

from app.errors import UnsupportedModelError

Float32 = npt.NDArray[np.float32]

REVISION = 1  # raise it when what `convert` writes changes, so that cached models are made anew

_CONTROL_TOKEN = 3  # ggml's token type of special tokens
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
# How the text is cut before BPE, by the name that GGUF gives the recipe.
_PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "smollm": lambda: Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
}


def convert(gguf_file: Path, folder: Path, *, progress: bool = False) -> None:
    """Write the model of `gguf_file` into the existing `folder`, with a bar on stderr if `progress`.

    Raises:
        UnsupportedModelError: an architecture, tokenizer or tensor that this conversion doesn't know.
    """
    reader = GGUFReader(gguf_file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    _expect(metadata, "general.architecture", ["llama"])
    _expect(metadata, "tokenizer.ggml.model", ["gpt2"])
    _expect(metadata, "tokenizer.ggml.pre", list(_PRE_TOKENIZERS))
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    _write_json(folder / "config.json", _config(metadata, tied=tied))
    _write_json(folder / "generation_config.json", _special_ids(metadata))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata))
    _tokenizer(metadata).save(str(folder / "tokenizer.json"))
    _write_weights(folder / "model.safetensors", reader.tensors, metadata, progress=progress)


def _expect(metadata: dict[str, Any], key: str, allowed: list[str]) -> None:
    if metadata.get(key) not in allowed:
        raise UnsupportedModelError(f"{key} = {metadata.get(key)!r}; this conversion knows {allowed}")


def _config(metadata: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    num_heads = metadata["llama.attention.head_count"]
    hidden_size = metadata["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": hidden_size,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", num_heads),
        "head_dim": metadata.get("llama.rope.dimension_count", hidden_size // num_heads),
        "max_position_embeddings": metadata["llama.context_length"],
        "rope_theta": _shortest(metadata.get("llama.rope.freq_base", 10000.0)),
        "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        **_special_ids(metadata),
    }


def _shortest(value: float) -> float:
    """The decimal number that was meant: GGUF keeps 1e-05 as the float32 9.999999747e-06."""
    return float(str(np.float32(value)))


def _special_ids(metadata: dict[str, Any]) -> dict[str, int]:
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: token_id for name, token_id in ids.items() if token_id is not None}


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    special = {name.removesuffix("_id"): tokens[i] for name, i in _special_ids(metadata).items()}
    template = metadata.get("tokenizer.chat_template")
    return {
        # The class that takes tokenizer.json as it is; a model's own class would rebuild the pre-tokenizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **special,
        **({"chat_template": template} if template is not None else {}),
    }


def _tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE; GGUF keeps vocabulary and merges in the byte-level alphabet already."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]]()
    tokenizer.decoder = ByteLevelDecoder()
    types = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    return tokenizer


def _write_weights(
    file: Path, tensors: list[ReaderTensor], metadata: dict[str, Any], *, progress: bool
) -> None:
    """safetensors, written tensor by tensor so that memory holds one of them at a time.

    | header length: uint64 LE | header: JSON, name → dtype, shape, [begin, end) | data, row-major, LE |
    """
    names = [_hugging_face_name(tensor.name) for tensor in tensors]
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


def _hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    if name in _TOP_LEVEL_NAMES:
        return _TOP_LEVEL_NAMES[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    if not name.startswith("blk.") or rest not in _LAYER_NAMES:
        raise UnsupportedModelError(f"tensor {name!r} isn't part of the Llama architecture built here")
    return f"model.layers.{block}.{_LAYER_NAMES[rest]}"


def _weights(tensors: list[ReaderTensor], metadata: dict[str, Any], *, progress: bool) -> Iterator[Float32]:
    num_heads = metadata["llama.attention.head_count"]
    num_kv_heads = metadata.get("llama.attention.head_count_kv", num_heads)
    for tensor in tqdm(tensors, desc="converting", unit="tensor", disable=not progress):
        weight = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith("attn_q.weight"):
            weight = _unpermute(weight, num_heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = _unpermute(weight, num_kv_heads)
        yield weight


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
