"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.models.store import resolve_model
from app.settings.model import ModelConfig
from tests.support import examples  # noqa: F401  (registers the profile before the command line chooses it)
from tests.support.models.tiny_llama import write_tiny_llama

# Without a GPU, Triton's kernels run in its interpreter. Triton decides that when it is imported, which
# transformers may do first. So the setting is made here, before any test file is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The embedded default model, fetched and converted once per machine."""
    return resolve_model(ModelConfig())


@pytest.fixture(scope="session")
def new_tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a Llama with random float32 weights; keywords change its `config.json`."""

    def make(**changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("tiny-llama")
        write_tiny_llama(folder, changes)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_llama_dir(new_tiny_llama: Callable[..., Path]) -> Path:
    """A Llama of 2 layers, 4 query heads over 2 key/value heads, a vocabulary of 512 and a context of 256."""
    return new_tiny_llama()
