"""The conversion: a tiny model whose weights are known, and the real one's answer."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from app.engine.torch.engine import Engine
from app.engine.torch.model.architecture import read_architecture
from app.errors import UnsupportedModelError
from app.models.gguf_conversion import convert
from app.settings.engine import EngineConfig
from app.text.tokenizer import Tokenizer
from tests.support.models.tiny_gguf import (
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


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_comes_back_in_bfloat16(
    gguf_file: Path, folder: Path, architecture: str, tied: bool
) -> None:
    expected = write_tiny_gguf(gguf_file, architecture=architecture, tied=tied)
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


@pytest.mark.parametrize(
    ("architecture", "family"), [("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")]
)
def test_the_engine_serves_what_was_converted(
    gguf_file: Path, folder: Path, architecture: str, family: str
) -> None:
    lengths = {f"{architecture}.attention.{name}_length": HEAD_DIM for name in ("key", "value")}
    write_tiny_gguf(gguf_file, architecture=architecture, metadata=lengths)
    convert(gguf_file, folder)
    config = EngineConfig.model_validate({"cache": {"num_blocks": 8}})
    assert Engine.load(folder, config, device="cpu", dtype="float32").max_model_len == 128
    assert read(folder / "config.json")["architectures"] == [family]
    assert read_architecture(folder).sliding_windows == (None,) * LAYERS


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"type": "none"}, None),
        ({"type": "linear", "factor": 2.5}, {"rope_type": "linear", "factor": 2.5}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling(
    gguf_file: Path, folder: Path, metadata: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    scaling = {f"qwen2.rope.scaling.{key}": value for key, value in metadata.items()}
    write_tiny_gguf(gguf_file, architecture="qwen2", metadata=scaling)
    convert(gguf_file, folder)
    assert read(folder / "config.json").get("rope_scaling") == expected


def test_the_rope_scaling_of_llama_3(gguf_file: Path, folder: Path) -> None:
    head_dim, theta = 64, 500000.0
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    sizes = {"llama.rope.dimension_count": head_dim, "llama.rope.freq_base": theta}
    divisors = llama3_divisors(theta, head_dim, **rope)
    write_tiny_gguf(gguf_file, extra={"rope_freqs.weight": divisors}, metadata=sizes)
    convert(gguf_file, folder)
    assert read(folder / "config.json")["rope_scaling"] == rope
    write_tiny_gguf(gguf_file, extra={"rope_freqs.weight": divisors + 0.01}, metadata=sizes)
    with pytest.raises(UnsupportedModelError, match="isn't Llama"):
        convert(gguf_file, folder)


def llama3_divisors(theta: float, head_dim: int, **rope: Any) -> npt.NDArray[np.float32]:
    """What llama.cpp's `LlamaModel.generate_extra_tensors` writes."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    divisors = []
    for exponent in np.arange(0, head_dim, 2) / head_dim:
        wavelength = 2 * math.pi * theta**exponent
        if wavelength < context / high:
            divisors.append(1.0)
        elif wavelength > context / low:
            divisors.append(rope["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, np.float32)


def test_an_end_of_turn_ends_an_answer_too(gguf_file: Path, folder: Path) -> None:
    write_tiny_gguf(gguf_file, metadata={"tokenizer.ggml.eot_token_id": 2})
    convert(gguf_file, folder)
    assert Tokenizer.from_folder(folder).eos_token_ids == (1, 2)
    assert read_architecture(folder).eos_token_ids == (1, 2)


# Tokenizers: bytes, a few merges, a special and an added token.
SPECIAL, ADDED = "<|end|>", "<think>"
BYTES = sorted(ByteLevel.alphabet())
MERGES = ["1 2", "12 3", "Ġ a", "Ã ©", "' s"]
VOCABULARY = [SPECIAL, ADDED, *BYTES, *("".join(merge.split(" ")) for merge in MERGES)]
TEXTS = ["it's 1234567 a", "ES'S cafe\u0301 é\n\n  x  ", f"{ADDED}a{SPECIAL} {ADDED}", "\t漢字 😀!?\r\n"]


def converted_tokenizer(gguf_file: Path, folder: Path, pre: str, **settings: Any) -> Tokenizer:
    metadata = {
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.token_type": [3, 4] + [1] * (len(VOCABULARY) - 2),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.pre": pre,
    }
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in settings.items()}
    write_tiny_gguf(gguf_file, metadata=metadata)
    convert(gguf_file, folder)
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_of_qwen(gguf_file: Path, folder: Path, text: str) -> None:
    ours = converted_tokenizer(gguf_file, folder, "qwen2")
    vocab = {token: token_id for token_id, token in enumerate(VOCABULARY)}
    merges: Any = [tuple(merge.split(" ")) for merge in MERGES]
    theirs = Qwen2Tokenizer(
        vocab=vocab, merges=merges, unk_token=SPECIAL, eos_token=SPECIAL, pad_token=SPECIAL
    )
    theirs.add_tokens([ADDED])
    token_ids = ours.encode(text)
    assert token_ids == theirs(text)["input_ids"]
    assert ours.decode(token_ids) == theirs.decode(token_ids, skip_special_tokens=True)


def test_the_tokenizer_of_llama_3(gguf_file: Path, folder: Path) -> None:
    tokenizer = converted_tokenizer(gguf_file, folder, "llama-bpe")

    def pieces(text: str, **options: Any) -> list[str]:
        return [VOCABULARY[token_id] for token_id in tokenizer.encode(text, **options)]

    # Digits by threes, not normalised, and a text begins with the token for that.
    assert pieces("1231234") == ["123", "123", "4"]
    assert pieces("e\u0301'S a") == ["e", "Ì", "ģ", "'", "S", "Ġa"]
    assert pieces("a", add_special_tokens=True) == [SPECIAL, "a"]
    without = converted_tokenizer(gguf_file, folder, "llama-bpe", add_bos_token=False)
    assert without.encode("a", add_special_tokens=True) == tokenizer.encode("a")


# Sentencepiece: pieces and their scores.
PIECES = {"▁": -9, "a": -8, "b": -7, "c": -6, "ab": -2, "bc": -1, "▁a": -3, "abc": -4, "▁ab": -0.5, "cc": -5}
SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "[X]"]


def merged_by_score(text: str) -> list[str]:
    """What sentencepiece does: the neighbours with the best whole become one, until none do."""
    pieces = [*("▁" + text.replace(" ", "▁"))]
    while True:
        scores = [PIECES.get(left + right, -math.inf) for left, right in itertools.pairwise(pieces)]
        if not scores or max(scores) == -math.inf:
            return pieces
        at = scores.index(max(scores))
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def test_a_sentencepiece_tokenizer(gguf_file: Path, folder: Path) -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": SPM_TOKENS,
        "tokenizer.ggml.scores": [0.0] * 259 + [float(score) for score in PIECES.values()] + [0.0],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [4],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    write_tiny_gguf(gguf_file, metadata=metadata)
    convert(gguf_file, folder)
    tokenizer = Tokenizer.from_folder(folder)

    def pieces(text: str, **options: Any) -> list[str]:
        return [SPM_TOKENS[token_id] for token_id in tokenizer.encode(text, **options)]

    for letters in itertools.product("abc ", repeat=5):
        text = "".join(letters)
        assert pieces(text) == merged_by_score(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert pieces("aé", add_special_tokens=True) == ["<s>", "▁a", "<0xC3>", "<0xA9>"]
    assert pieces("[X]</s>") == ["[X]", "</s>"]
    assert tokenizer.decode(tokenizer.encode("é[X]</s>")) == "é[X]"
    assert tokenizer.eos_token_ids == (2,)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight"])
def test_an_unknown_tensor_is_refused(gguf_file: Path, folder: Path, name: str) -> None:
    write_tiny_gguf(gguf_file, extra={name: np.ones(4, np.float32)})
    with pytest.raises(UnsupportedModelError, match=f"tensor '{name}'"):
        convert(gguf_file, folder)


@pytest.mark.parametrize(
    ("architecture", "metadata", "message"),
    [
        ("gemma", {}, r"general\.architecture = 'gemma'; .*'llama', 'qwen2', 'qwen3'"),
        ("llama", {"tokenizer.ggml.pre": "tekken"}, r"tokenizer\.ggml\.pre = 'tekken'; .*'smollm'"),
        ("llama", {"tokenizer.ggml.model": "bert"}, r"tokenizer\.ggml\.model = 'bert'; .*'gpt2', 'llama'"),
        ("llama", {"tokenizer.ggml.model": "llama"}, r"no tokenizer\.ggml\.scores"),
        ("llama", {"split.count": 3}, "split.count = 3: only whole files"),
        ("llama", {"llama.attention.head_count_kv": [1, 2]}, "layers of different shapes"),
        ("llama", {"llama.attention.value_length": 8}, "differ in size"),
        ("qwen2", {"qwen2.rope.scaling.type": "longrope"}, "rope scaling 'longrope'"),
    ],
)
def test_what_is_not_converted_is_refused_by_name(
    gguf_file: Path, folder: Path, architecture: str, metadata: dict[str, Any], message: str
) -> None:
    write_tiny_gguf(gguf_file, architecture=architecture, metadata=metadata)
    with pytest.raises(UnsupportedModelError, match=message):
        convert(gguf_file, folder)


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF\x03\0\0\0"])
def test_a_file_of_something_else_is_refused(gguf_file: Path, folder: Path, content: bytes) -> None:
    gguf_file.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match="not a readable GGUF file"):
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
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2_dir)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=dtype)
    token_ids = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0]
    answer = tokenizer.decode(token_ids[prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
