"""An engine put together from a configuration, and models that are refused before one is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.config import AppConfig
from app.engine.check import check_architecture
from app.engine.load import load_engine
from app.engine.loading.torch_engine import load_step_engine
from app.errors import ConfigError, UnsupportedModelError
from app.generation import GenerateRequest, SamplingParams, StructuredOutput
from app.text.tokenizer import Tokenizer
from tests.support.engine.live_engine import new_request
from tests.support.engine.runs import run, tokens_of
from tests.support.engine.tiny_engine import tiny_engine

NewModel = Callable[..., Path]


@pytest.fixture(scope="module")
def new_model(new_tiny_llama: NewModel, smollm2_dir: Path) -> NewModel:
    """A tiny Llama with the default model's tokenizer; keywords change its `config.json`."""
    vocab_size = Tokenizer.from_folder(smollm2_dir).vocab_size

    def make(**changes: Any) -> Path:
        shape = {"vocab_size": vocab_size, "hidden_size": 32, "num_attention_heads": 2}
        folder = new_tiny_llama(**(shape | changes))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(smollm2_dir / name, folder)
        return folder

    return make


@pytest.fixture(scope="module")
def model_dir(new_model: NewModel) -> Path:
    return new_model(eos_token_id=None)


def settings(model_dir: Path, **model: Any) -> AppConfig:
    return AppConfig.model_validate(
        {
            "model": {"path": str(model_dir), "device": "cpu", "dtype": "float32"} | model,
            "engine": {"cache": {"num_blocks": 64}, "num_threads": torch.get_num_threads()},
        }
    )


def test_the_tokenizer_ends_outputs_finds_stop_strings_and_makes_grammars(model_dir: Path) -> None:
    engine = load_step_engine(settings(model_dir))
    tokenizer = Tokenizer.from_folder(model_dir)
    assert engine.eos_token_ids == tokenizer.eos_token_ids != ()
    choice = StructuredOutput("choice", '["yes", "no"]', "structured_outputs.choice")
    engine.add_request(
        GenerateRequest("a", [5, 6, 7], SamplingParams(20, temperature=0.0, structured_output=choice))
    )
    outputs = run(engine)["a"]
    text = tokenizer.decode(tokens_of(outputs))
    assert text in ("yes", "no")
    assert outputs[-1].finish_reason == "stop"
    stopped = SamplingParams(20, temperature=0.0, structured_output=choice, stop=(text[:1],))
    engine.add_request(GenerateRequest("b", [5, 6, 7], stopped))
    assert len(tokens_of(run(engine)["b"])) <= len(tokens_of(outputs))


async def test_a_ranks_engine_serves_what_was_configured(model_dir: Path) -> None:
    given = os.path.relpath(model_dir)
    engine = load_engine(settings(model_dir, path=given, max_model_len=40), dp_rank=3)
    assert (engine.description.max_model_len, engine.description.max_prompt_tokens) == (40, 39)
    assert engine.load.dp_rank == 3
    assert engine.description.model_dir == str(model_dir)
    engine.start(None)
    params = SamplingParams(100, temperature=0, ignore_eos=True)
    chunks = [chunk async for chunk in engine.admit(new_request("a", params=params))]
    assert (len(chunks), chunks[-1].finish_reason) == (40 - 5, "length")
    engine.stop()


@pytest.mark.parametrize("max_model_len", [1, 257])
def test_a_context_beyond_the_models_is_refused(max_model_len: int, model_dir: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"model\.max_model_len = {max_model_len}: the model allows 2 to 256"
    ):
        load_step_engine(settings(model_dir, max_model_len=max_model_len))


@pytest.mark.parametrize("max_model_len", [1, 257])
def test_the_engines_own_loading_refuses_such_a_context_too(max_model_len: int, model_dir: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"model\.max_model_len = {max_model_len}: the model allows 2 to 256"
    ):
        tiny_engine(model_dir, max_model_len=max_model_len)


def test_dynamic_rope_ends_with_the_original_context(new_model: NewModel) -> None:
    folder = new_model(rope_scaling={"type": "dynamic", "factor": 2.0})
    assert load_step_engine(settings(folder)).max_model_len == 256
    with pytest.raises(ConfigError, match=r"model\.max_model_len = 257: the model allows 2 to 256"):
        load_step_engine(settings(folder, max_model_len=257))


def test_a_family_that_the_engine_lacks_is_refused_by_the_check_and_by_the_rank(new_model: NewModel) -> None:
    folder = new_model()
    check_architecture(folder, "torch")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    for refuse in (lambda: check_architecture(folder, "torch"), lambda: load_step_engine(settings(folder))):
        with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel is not supported; supported: Llama"):
            refuse()
    check_architecture(folder, "vllm")  # which says itself what it can't serve
