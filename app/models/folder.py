"""A model's folder in the Hugging Face layout: what it must hold, and its JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.errors import ModelNotFoundError, UnsupportedModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def is_complete(folder: Path, *, weights: bool = True) -> bool:
    """Whether `folder` is there and lacks nothing; `weights` False: but perhaps those."""
    return folder.is_dir() and missing_file(folder, weights=weights) is None


def missing_file(folder: Path, *, weights: bool = True) -> str | None:
    """The first file that serving needs and `folder` lacks; `weights` False: those aren't needed."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            return name
    if not weights or (folder / WEIGHTS).is_file():
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


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`.

    Raises:
        ModelNotFoundError: there is none.
        UnsupportedModelError: it isn't a JSON object.
    """
    config = read_json(folder / "config.json")
    if config is None:
        raise ModelNotFoundError(f"{folder}: no config.json; a folder in the Hugging Face layout is needed")
    return config


def read_json(file: Path) -> dict[str, Any] | None:
    """The JSON object in `file`; None if there is no such file.

    Raises:
        UnsupportedModelError: it holds something else.
    """
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{file}: an object is needed, not {content!r}")
    return content
