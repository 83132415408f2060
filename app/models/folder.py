"""What a model's folder in the Hugging Face layout must hold."""

from __future__ import annotations

import json
from pathlib import Path

from app.errors import ModelNotFoundError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def is_complete(folder: Path) -> bool:
    """Whether `folder` is there and lacks nothing."""
    return folder.is_dir() and missing_file(folder) is None


def missing_file(folder: Path) -> str | None:
    """The first file that serving needs and `folder` lacks."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            return name
    if (folder / WEIGHTS).is_file():
        return None
    if not (folder / INDEX).is_file():
        return f"{WEIGHTS} (or {INDEX})"
    return next((name for name in shards(folder / INDEX) if not (folder / name).is_file()), None)


def shards(index: Path) -> list[str]:
    """The weight files that an index of sharded weights lists.

    Raises:
        ModelNotFoundError: the file isn't such an index.
    """
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelNotFoundError(f"{index}: not an index of safetensors files: {error!r}") from error
