"""The conversion: a tiny model whose weights are known, and the real one's answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.errors import UnsupportedModelError
from app.gguf_conversion import convert
from tests.tiny_gguf import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    TEMPLATE,
    TOKENS,
    write_tiny_gguf,
)


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_comes_back_in_bfloat16(gguf_file: Path, folder: Path, tied: bool) -> None:
    expected = write_tiny_gguf(gguf_file, tied=tied)
    convert(gguf_file, folder)
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(weights[name], torch.from_numpy(weight).bfloat16()), name
    assert read(folder / "config.json")["tie_word_embeddings"] is tied


def test_config(gguf_file: Path, folder: Path) -> None:
    write_tiny_gguf(gguf_file)
    convert(gguf_file, folder)
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    assert read(folder / "generation_config.json") == ids
    assert read(folder / "config.json") == ids | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(TOKENS),
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 128,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-05,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
    }


def test_tokenizer(gguf_file: Path, folder: Path) -> None:
    write_tiny_gguf(gguf_file)
    convert(gguf_file, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # "01" is in the vocabulary but digits are split before BPE may merge them.
    assert tokenizer.tokenize("ab a01<s>") == ["ab", "Ġa", "0", "1", "<s>"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.chat_template == TEMPLATE


def test_a_bar_only_if_asked(gguf_file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_gguf(gguf_file)
    convert(gguf_file, folder)
    assert capsys.readouterr() == ("", "")
    convert(gguf_file, folder, progress=True)
    assert "converting" in capsys.readouterr().err


@pytest.mark.parametrize("extra", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight"])
def test_an_unknown_tensor_is_refused(gguf_file: Path, folder: Path, extra: str) -> None:
    write_tiny_gguf(gguf_file, extra=extra)
    with pytest.raises(UnsupportedModelError, match=f"tensor '{extra}'"):
        convert(gguf_file, folder)


def test_an_unknown_pre_tokenizer_is_refused(gguf_file: Path, folder: Path) -> None:
    write_tiny_gguf(gguf_file, pre="llama-bpe")
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.ggml\.pre = 'llama-bpe'; .*'smollm'"):
        convert(gguf_file, folder)


def test_facts_of_the_real_model(smollm2_dir: Path) -> None:
    config = read(smollm2_dir / "config.json")
    facts = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert {name: config[name] for name in facts} == facts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_model_knows_the_capital_of_france(smollm2_dir: Path, dtype: torch.dtype) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=dtype)
    token_ids = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0]
    answer = tokenizer.decode(token_ids[prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
