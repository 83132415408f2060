"""Whether an engine can serve a model, by what is small of it: without torch, and before anything starts."""

from __future__ import annotations

from pathlib import Path

from app.engine.torch.model.architecture import read_architecture


def check_model(model_dir: Path) -> None:
    """Refuse a model that the ranks' engine can't serve; its weights are left to the ranks.

    Raises:
        ModelNotFoundError: no `config.json` in `model_dir`.
        UnsupportedModelError: a family or a feature that the engine doesn't have.
    """
    read_architecture(model_dir)
