"""Processes that are found by what they are, and signalled only when they are this process's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.processes import (
    HungThread,
    NotOursError,
    busiest,
    long_living,
    pids_of,
    send_signal,
    thread_times,
)
from benchmarks.graphs.replicas import kind_of
from tests.support.deadlines import wait_until

BUSY = "while True: pass"


@pytest.fixture
def replica() -> Iterator[subprocess.Popen[bytes]]:
    """A busy process with the title that Ray gives a rank's replica."""
    process = subprocess.Popen(["ray::ServeReplica:app:DPRank.call", "-c", BUSY], executable=sys.executable)
    wait_until(lambda: process.pid in pids_of("DPRank"), "the process under its title")
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ray::ServeReplica:app:DPRank", "DPRank"),
        ("ray::ServeReplica:app:Ingress.handle_request", "Ingress"),
        ("ray::ServeController.listen_for_change", "ServeController"),
        ("ray::ProxyActor", "ProxyActor"),
        ("/env/ray/core/src/ray/raylet/raylet", "raylet"),
        ("ray::IDLE", ""),
        ("python", ""),
    ],
)
def test_what_a_process_is(title: str, kind: str) -> None:
    assert kind_of(title) == kind


def test_a_replica_is_found_and_killed(replica: subprocess.Popen[bytes]) -> None:
    assert long_living()[replica.pid] == "DPRank"
    with pytest.raises(NotOursError, match="isn't a Router"):
        send_signal(replica.pid, "Router", signal.SIGKILL)
    send_signal(replica.pid, "DPRank", signal.SIGKILL)
    assert replica.wait(10) == -signal.SIGKILL
    with pytest.raises(NotOursError, match="has gone"):
        send_signal(replica.pid, "DPRank", signal.SIGKILL)


def test_others_are_never_signalled() -> None:
    for pid in (1, os.getpid(), os.getppid()):
        with pytest.raises(NotOursError, match="isn't a DPRank of this graph"):
            send_signal(pid, "DPRank", signal.SIGKILL)


def test_a_thread_stands_still_until_it_is_released(replica: subprocess.Popen[bytes]) -> None:
    before = thread_times(replica.pid)
    thread = busiest(before, thread_times(replica.pid))
    hung = hang(replica.pid, thread)
    at_stop = wait_until(lambda: stands_still(replica.pid), "a thread that stands still")
    assert not hung.has_ended()
    hung.release()
    wait_until(lambda: thread_times(replica.pid) != at_stop, "the thread goes on")


def test_a_process_may_be_killed_while_a_thread_of_it_stands_still(replica: subprocess.Popen[bytes]) -> None:
    hung = hang(replica.pid, replica.pid)
    send_signal(replica.pid, "DPRank", signal.SIGKILL)
    wait_until(hung.has_ended, "the end is seen")
    hung.release()
    replica.wait(10)


def hang(pid: int, thread: int) -> HungThread:
    try:
        return HungThread(pid, "DPRank", thread)
    except PermissionError:
        pytest.skip("ptrace isn't allowed here")


def stands_still(pid: int) -> dict[int, int] | None:
    """The threads' times, if the first is stopped by its tracer."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return thread_times(pid) if state == "t" else None
