"""A process that is killed leaves none behind that it had guarded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
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


def start(tmp_path: Path, how: str) -> tuple[subprocess.Popen[str], list[int], Path]:
    """A parent; the pids of its child, its grandchild and its guard; the folder that the guard removes."""
    script, folder = tmp_path / "parent.py", tmp_path / "sockets"
    script.write_text(PARENT)
    folder.mkdir()
    command = [sys.executable, str(script), str(folder), how]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    return parent, [int(pid) for pid in parent.stdout.readline().split()], folder


def end(parent: subprocess.Popen[str], pids: list[int]) -> None:
    for pid in (parent.pid, *pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    parent.wait()
    if parent.stdout is not None:
        parent.stdout.close()


def test_a_killed_process_takes_child_grandchild_guard_and_folder_with_it(tmp_path: Path) -> None:
    parent, pids, folder = start(tmp_path, "wait")
    try:
        assert len(pids) == 3
        assert all(map(is_alive, pids))
        parent.kill()
        wait_until(lambda: not any(map(is_alive, pids)), "no process left")
        assert not folder.exists()
    finally:
        end(parent, pids)


def test_the_guards_end_is_its_wards_end(tmp_path: Path) -> None:
    parent, pids, folder = start(tmp_path, "close")
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "joined\n"
        assert not any(map(is_alive, pids))
        assert not folder.exists()
    finally:
        end(parent, pids)
