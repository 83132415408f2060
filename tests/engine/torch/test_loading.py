"""What a model folder may be, and what a refusal says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from app.engine.torch.engine import Engine
from app.engine.torch.memory.available import available_bytes
from app.engine.torch.memory.placement import resolve_device, resolve_dtype
from app.errors import (
    ConfigError,
    InsufficientMemoryError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from app.generation import GenerateRequest, SamplingParams
from app.settings.engine import EngineConfig

MISTRAL: dict[str, Any] = {"architectures": ["MistralForCausalLM"]}
QWEN: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"]}
NewLlama = Callable[..., Path]


def load(model_dir: Path, **cache: Any) -> Engine:
    config = EngineConfig.model_validate({"cache": {"num_blocks": 8} | cache})
    return Engine.load(model_dir, config, device="cpu", dtype="float32")


def tokens(engine: Engine) -> list[int]:
    engine.add_request(GenerateRequest("a", [1, 5, 9], SamplingParams(6, temperature=0.0, ignore_eos=True)))
    out: list[int] = []
    while engine.has_work():
        out += engine.step().outputs[0].new_token_ids
    return out


def test_shards_are_one_model(tiny_llama_dir: Path, new_tiny_llama: NewLlama) -> None:
    folder = new_tiny_llama()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(weights)}
    for part in set(weight_map.values()):
        save_file({name: weights[name] for name in weights if weight_map[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert tokens(load(folder)) == tokens(load(tiny_llama_dir))
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"names part-1.safetensors, not there"):
        load(folder)


def test_a_missing_file_is_named(tmp_path: Path, new_tiny_llama: NewLlama) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        load(tmp_path)
    folder = new_tiny_llama()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.index"):
        load(folder)


def change_weights(folder: Path, changes: dict[str, Any]) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | changes, file)


def test_a_head_of_its_own_wins_over_a_tie(tiny_llama_dir: Path, new_tiny_llama: NewLlama) -> None:
    weights = load_file(tiny_llama_dir / "model.safetensors")
    folder = new_tiny_llama(tie_word_embeddings=True)
    tied = tokens(load(folder))
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_weights(folder, {"lm_head.weight": embedding})
    assert tokens(load(folder)) == tied
    # As in transformers, which believes the checkpoint rather than config.json.
    change_weights(folder, weights)
    assert tokens(load(folder)) == tokens(load(tiny_llama_dir)) != tied


def test_tensors_that_nothing_reads_are_refused(new_tiny_llama: NewLlama) -> None:
    folder = new_tiny_llama()
    prefix = "model.layers.0.self_attn"
    change_weights(folder, {f"{prefix}.rotary_emb.inv_freq": np.ones(8, np.float32)})
    load(folder)
    change_weights(folder, {f"{prefix}.q_proj.bias": np.ones(64, np.float32)})
    with pytest.raises(UnsupportedModelError, match=r"1 tensors belong to nothing .*q_proj\.bias"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "GPT2LMHeadModel is not supported; supported: LlamaForCausalLM, MistralForCausalLM",
        ),
        ({"architectures": None}, r"\(none\) is not supported"),
        (
            {"architectures": "LlamaForCausalLM"},
            "architectures = 'LlamaForCausalLM': a list of names is needed",
        ),
        ({"num_key_value_heads": 2.0}, "num_key_value_heads = 2.0: a positive integer is needed"),
        ({"head_dim": 15}, "head_dim = 15: an even number is needed"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers = 'two': a positive integer is needed"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; supported: 'silu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = .* is not supported"),
        (
            {"rope_scaling": {"type": "longrope"}},
            "rope scaling 'longrope' is not supported; supported: default",
        ),
        ({"rope_scaling": {"type": "linear"}}, "no key 'factor'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope settings of their own for full_attention are not supported",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3: num_attention_heads = 4 is no multiple of it"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "no tensor model.layers.0.self_attn.q_proj.bias"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "no tensor model.layers.0.self_attn.q_norm.weight"),
        (MISTRAL | {"sliding_window": 0}, "sliding_window = 0: a positive integer or null"),
        (MISTRAL | {"layer_types": ["full_attention"] * 2}, "layer_types: a Mistral has one sliding_window"),
        (
            QWEN | {"layer_types": ["sliding_attention"] * 2},
            "2 entries are needed, each one of full_attention ",
        ),
        (QWEN | {"layer_types": ["full_attention"]}, "2 entries are needed"),
        ({"intermediate_size": 128}, r"gate_proj.weight has shape \[96, 64\]; config.json says \[128, 64\]"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2"),
    ],
)
def test_an_unsupported_model_is_refused_by_name(
    changes: dict[str, Any], message: str, new_tiny_llama: NewLlama
) -> None:
    folder = new_tiny_llama()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UnsupportedModelError, match=message):
        load(folder)


def test_broken_files_are_refused(new_tiny_llama: NewLlama) -> None:
    folder = new_tiny_llama()
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UnsupportedModelError, match="not a readable safetensors file"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match="not JSON"):
        load(folder)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(UnsupportedModelError, match="no key 'vocab_size'"):
        load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UnsupportedModelError, match="an object is needed"):
        load(folder)


def test_a_cache_beyond_the_memory_is_refused_with_what_would_fit(tiny_llama_dir: Path) -> None:
    with pytest.raises(
        InsufficientMemoryError, match=r"num_blocks = 1000000000 needs .* at most \d+ blocks fit"
    ):
        load(tiny_llama_dir, num_blocks=10**9)


def test_a_fraction_that_holds_no_block_is_refused(tiny_llama_dir: Path) -> None:
    with pytest.raises(InsufficientMemoryError, match="holds no block of"):
        load(tiny_llama_dir, num_blocks=None, memory_fraction=1e-9)


def test_weights_beyond_the_memory_are_refused_before_they_are_read(new_tiny_llama: NewLlama) -> None:
    folder = new_tiny_llama()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 10**7}))
    with pytest.raises(
        InsufficientMemoryError, match=r"weights need .* GiB in torch.float32, cpu has .* free"
    ):
        load(folder)


def test_the_cache_takes_its_fraction_of_free_memory(tiny_llama_dir: Path) -> None:
    engine = load(tiny_llama_dir, num_blocks=None, memory_fraction=0.001)
    block_bytes = 2 * 2 * 2 * 16 * 4 * engine.block_size
    share = engine.num_blocks * block_bytes / (0.001 * available_bytes(torch.device("cpu")))
    assert share == pytest.approx(1, rel=0.2)  # others use this machine's memory meanwhile


def test_available_memory_respects_the_cgroup(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    assert available_bytes(torch.device("cpu"), meminfo, cgroup) == 4000 * 1024
    (cgroup / "memory.max").write_text("max\n")
    assert available_bytes(torch.device("cpu"), meminfo, cgroup) == 4000 * 1024
    (cgroup / "memory.max").write_text("1000000\n")
    (cgroup / "memory.current").write_text("600000\n")
    (cgroup / "memory.stat").write_text("active_file 7\ninactive_file 100000\n")
    assert available_bytes(torch.device("cpu"), meminfo, cgroup) == 500_000
    (cgroup / "memory.max").write_text("1\n")
    assert available_bytes(torch.device("cpu"), meminfo, cgroup) == 0


def test_without_meminfo_the_whole_memory_counts_as_available(tmp_path: Path) -> None:
    available = available_bytes(torch.device("cpu"), tmp_path / "meminfo", tmp_path / "cgroup")
    assert available >= available_bytes(torch.device("cpu"), cgroup=tmp_path / "cgroup") > 0


def test_auto_dtype_without_onednn_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)  # asking it anything would raise
    assert resolve_dtype("auto", torch.device("cpu"), "bfloat16") == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a cuda device")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.device = 'cuda'"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


def test_auto_dtype_is_the_checkpoints_on_cuda() -> None:
    cuda = torch.device("cuda")
    assert resolve_dtype("auto", cuda, "float16") == torch.float16
    assert resolve_dtype("auto", cuda, "float32") == torch.bfloat16
    assert resolve_dtype("float32", cuda, "bfloat16") == torch.float32
