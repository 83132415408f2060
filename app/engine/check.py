"""Whether an engine has what is set, and can serve a model: before anything starts, and without torch."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from app.config import AppConfig, EngineKind
from app.engine.resources import rank_placement
from app.engine.torch.model.architecture import read_architecture
from app.engine.vllm.arguments import check_given, check_known


def check_engine(config: AppConfig) -> None:
    """Refuse what the settings of the ranks' engine say wrongly.

    vLLM's engine arguments are looked for in the vLLM that is installed here. Where there is none, or ranks
    have a Python of their own, each rank looks for them in its own vLLM.

    Raises:
        ConfigError: a setting contradicts another, or an engine argument is unknown.
    """
    check_given(config)
    rank_placement(config)
    if config.engine.vllm and config.resources.python is None and find_spec("vllm") is not None:
        known = import_module("app.engine.vllm.argument_names").ENGINE_ARGUMENTS
        check_known(config.engine.vllm, known)


def check_model(model_dir: Path, kind: EngineKind) -> None:
    """Refuse a model that the ranks' engine can't serve; its weights are left to the ranks.

    vLLM knows its own models: it says at its start which it can't serve.

    Raises:
        ModelNotFoundError: no `config.json` in `model_dir`.
        UnsupportedModelError: a family or a feature that the engine doesn't have.
    """
    if kind == "torch":
        read_architecture(model_dir)
