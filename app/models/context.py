"""How many tokens a model reads and writes at most, of any family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.errors import ConfigError, UnsupportedModelError
from app.models.folder import read_config

_KEY = "max_position_embeddings"


def context_length(model_dir: Path) -> int:
    """Tokens of prompt and output together at most, as `config.json` in `model_dir` says.

    Raises:
        ModelNotFoundError: no `config.json`.
        UnsupportedModelError: the file isn't a JSON object, or has no such number.
    """
    file, config = model_dir / "config.json", read_config(model_dir)
    if _KEY not in config:
        raise UnsupportedModelError(f"{file}: no key {_KEY!r}")
    length: Any = config[_KEY]
    if type(length) is not int or length < 1:
        raise UnsupportedModelError(f"{file}: {_KEY} = {length!r}: a positive integer is needed")
    return length


def resolve_max_model_len(max_model_len: int | None, context: int) -> int:
    """`max_model_len`, or all of the model's `context`.

    Raises:
        ConfigError: the context is shorter, or no prompt with an output token fits.
    """
    if max_model_len is None:
        return context
    if not 2 <= max_model_len <= context:
        raise ConfigError(f"model.max_model_len = {max_model_len}: the model allows 2 to {context}")
    return max_model_len
