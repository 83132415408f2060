"""Models of the Hugging Face Hub: from its local cache if that holds them, else downloaded into it.

The cache is Hugging Face's own (`HF_HUB_CACHE`, by default ~/.cache/huggingface/hub), which other programs
share. A token for gated models is read from the same place as theirs (`HF_TOKEN`).
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import httpx2
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from app.errors import ModelNotFoundError
from app.models.folder import INDEX, WEIGHTS, is_complete, missing_file, shards

logger = logging.getLogger(__name__)

_SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
]
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(path: str) -> bool:
    """Whether `path` has the form `organisation/name`."""
    return _ID.fullmatch(path) is not None


def snapshot(repo_id: str, *, weights: bool = True) -> Path:
    """The folder with the model's files. A cached one is taken as it is, without asking for a newer one.

    Without `weights` those aren't fetched.

    Raises:
        ModelNotFoundError: no such model, no access, no network, or a file that serving needs isn't in it.
    """
    cached = _cached(repo_id)
    if cached is not None and is_complete(cached, weights=weights):
        return cached
    logger.info("fetching %s from the Hugging Face Hub", repo_id)
    try:
        folder = _download(repo_id, weights=weights)
    except (OSError, httpx2.HTTPError) as error:
        reason = f"no such folder, and not to be had from the Hugging Face Hub: {_first_line(error)}"
        raise ModelNotFoundError(_complaint(repo_id, reason)) from error
    missing = missing_file(folder, weights=weights)
    if missing is not None:
        raise ModelNotFoundError(_complaint(repo_id, f"its snapshot {folder} has no {missing}"))
    return folder


def _complaint(repo_id: str, reason: str) -> str:
    return (
        f"model.path = {repo_id!r}: {reason}; fetch it beforehand where there is a network "
        f"(`hf download {repo_id}`), or set model.path to a local folder in the Hugging Face layout"
    )


def _cached(repo_id: str) -> Path | None:
    try:
        return Path(snapshot_download(repo_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _download(repo_id: str, *, weights: bool) -> Path:
    """Only what serving reads: many models also hold their weights in other formats."""
    if not weights:
        return Path(snapshot_download(repo_id, allow_patterns=_SMALL_FILES))
    folder = Path(snapshot_download(repo_id, allow_patterns=[*_SMALL_FILES, WEIGHTS, INDEX]))
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        snapshot_download(repo_id, allow_patterns=shards(folder / INDEX))
    return folder


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
