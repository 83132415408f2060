"""Ends vLLM's processes when the replica dies in whatever way: its engine core would live on, with its GPU.

    replica ── pids of its children ──▶ guard ── end of input ──▶ SIGKILL to each that still lives, and below

vLLM's engine core doesn't watch its parent (seen with 0.32: after `kill -9` of the parent it waits forever).
The guard is this file, run as a process of its own that imports next to nothing. A pipe tells it that the
replica is gone. It holds a file descriptor of each process: a later one with the same number is left alone.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL_S = 0.05
_WAIT_S = 5.0


class OrphanGuard:
    """The guard's process, for what this process starts by `multiprocessing` inside `watching`.

    Args:
        folder: is removed at the end.
    """

    def __init__(self, folder: Path) -> None:
        self._told: set[int] = set()
        command = [sys.executable, "-I", "-S", __file__, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def pid(self) -> int:
        """The guard's process."""
        return self._process.pid

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this lasts, the children of this process are found and guarded from then on."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(_POLL_S):
                self._tell_all()

        thread = threading.Thread(target=look, name="vllm-orphan-guard", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._tell_all()

    def close(self) -> None:
        """End the guard, and whatever it guards that still lives; a second call does nothing."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_WAIT_S)

    def _tell_all(self) -> None:
        assert self._process.stdin is not None
        for child in multiprocessing.active_children():
            if child.pid is not None and child.pid not in self._told:
                self._told.add(child.pid)
                with suppress(BrokenPipeError):
                    self._process.stdin.write(f"{child.pid}\n".encode())
                    self._process.stdin.flush()


def _below(pid: int) -> list[int]:
    """The processes below `pid`, the nearest first."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            # After the name, which may hold anything: state, then the parent.
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(file.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]


def _kill(handle: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def _is_alive(handle: int) -> bool:
    try:
        signal.pidfd_send_signal(handle, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """The guard's process: takes pids until the input ends."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)
    guarded: dict[int, int] = {}
    for line in sys.stdin:
        with suppress(ProcessLookupError):
            guarded[int(line)] = os.pidfd_open(int(line))
    for pid, handle in guarded.items():
        if not _is_alive(handle):
            continue
        below = []
        for each in _below(pid):
            with suppress(ProcessLookupError):
                below.append(os.pidfd_open(each))
        for each in (handle, *below):
            _kill(each)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
