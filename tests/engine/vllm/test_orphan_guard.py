"""A process that is killed leaves none behind that it had guarded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.deadlines import wait_until
from tests.support.engine.vllm_processes import is_alive

REPO = Path(__file__).resolve().parents[3]
PARENT = """
import multiprocessing, subprocess, sys, time
from pathlib import Path
from app.engine.vllm.orphan_guard import OrphanGuard

def child(pipe):
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    pipe.send(grandchild.pid)
    time.sleep(1000)

if __name__ == "__main__":
    guard = OrphanGuard(Path(sys.argv[1]))
    with guard.watching():
        spawn = multiprocessing.get_context("spawn")
        ours, childs = spawn.Pipe()
        process = spawn.Process(target=child, args=(childs,))
        process.start()
    print(process.pid, ours.recv(), guard.pid, flush=True)
    if sys.argv[2] == "close":
        guard.close()
        guard.close()
        process.join()
        print("joined", flush=True)
    time.sleep(1000)
"""


@contextmanager
def family(tmp_path: Path, how: str) -> Iterator[tuple[subprocess.Popen[str], list[int], Path]]:
    """A parent; the pids of its child, its grandchild and its guard; the folder that the guard removes.

    At the end none of them is left. A pidfd holds each meanwhile: another process may have got its number.
    """
    script, folder = tmp_path / "parent.py", tmp_path / "sockets"
    script.write_text(PARENT)
    folder.mkdir()
    command = [sys.executable, str(script), str(folder), how]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    handles: list[int] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        try:
            assert parent.stdout is not None
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            for pid in pids:
                with suppress(ProcessLookupError):
                    handles.append(os.pidfd_open(pid))
            yield parent, pids, folder
        finally:
            parent.kill()
            for handle in handles:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                os.close(handle)


def test_a_killed_process_takes_child_grandchild_guard_and_folder_with_it(tmp_path: Path) -> None:
    with family(tmp_path, "wait") as (parent, pids, folder):
        assert len(pids) == 3
        assert all(map(is_alive, pids))
        parent.kill()
        wait_until(lambda: not any(map(is_alive, pids)), "no process left")
        assert not folder.exists()


def test_the_guards_end_is_its_wards_end(tmp_path: Path) -> None:
    with family(tmp_path, "close") as (parent, pids, folder):
        assert parent.stdout is not None
        assert parent.stdout.readline() == "joined\n"
        assert not any(map(is_alive, pids))
        assert not folder.exists()
