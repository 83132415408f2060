from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.errors import ConfigError, ModelNotFoundError, UnsupportedModelError
from app.models.context import context_length, resolve_max_model_len


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "SomeFamilyThatNoEngineHereKnows"])
def test_the_context_of_any_family(tmp_path: Path, family: str) -> None:
    config = {"architectures": [family], "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(tmp_path) == 4096


def test_a_folder_without_config_json_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        context_length(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "an object is needed"),
        ("{}", "no key 'max_position_embeddings'"),
        ('{"max_position_embeddings": "8k"}', "max_position_embeddings = '8k': a positive integer is needed"),
        ('{"max_position_embeddings": 0}', "max_position_embeddings = 0: a positive integer is needed"),
        ('{"max_position_embeddings": true}', "max_position_embeddings = True: a positive integer"),
    ],
)
def test_a_config_without_a_context_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UnsupportedModelError, match=message):
        context_length(tmp_path)


def test_the_whole_context_unless_less_is_asked_for() -> None:
    assert resolve_max_model_len(None, 256) == 256
    assert resolve_max_model_len(2, 256) == 2
    assert resolve_max_model_len(256, 256) == 256


@pytest.mark.parametrize("max_model_len", [1, 257])
def test_a_length_beyond_the_context_is_refused(max_model_len: int) -> None:
    with pytest.raises(
        ConfigError, match=f"model.max_model_len = {max_model_len}: the model allows 2 to 256"
    ):
        resolve_max_model_len(max_model_len, 256)
