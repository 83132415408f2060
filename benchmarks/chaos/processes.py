"""The processes of the graph that this process started: which there are, and what is done to them.

Nothing else is ever signalled: a process is looked up among the descendants of this one, and held by a file
descriptor (pidfd) meanwhile, so that a number that another process has taken over can't be hit.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from benchmarks.graphs.replicas import descendant_titles, kind_of, pids_of_kind

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
WAIT_FOR_THREADS = 0x40000000
"""`__WALL`: waitpid of threads that aren't children, but are traced."""
BUSY_FOR_S = 0.3
"""For so long threads are watched to find the one that works."""

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


class NotOursError(Exception):
    """A process isn't one of this graph's, or has gone."""


def pids_of(deployment: str) -> list[int]:
    """The replicas of `deployment`, or the controller, oldest first."""
    return sorted(pids_of_kind(deployment, os.getpid()), key=lambda pid: (started_at(pid), pid))


def long_living() -> dict[int, str]:
    """The processes that should live as long as the graph, and what each one is."""
    return {pid: kind for pid, title in descendant_titles(os.getpid()).items() if (kind := kind_of(title))}


def send_signal(pid: int, kind: str, number: signal.Signals) -> None:
    """Signal a process of this graph.

    Raises:
        NotOursError: it isn't a `kind` of this graph, or has gone.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise NotOursError(f"process {pid} has gone") from None
    try:
        if kind_of(descendant_titles(os.getpid()).get(pid, "")) != kind:
            raise NotOursError(f"process {pid} isn't a {kind} of this graph")
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        raise NotOursError(f"process {pid} has gone") from None
    finally:
        os.close(descriptor)


class HungThread:
    """A thread made to stand still by ptrace; the others of its process go on until they need it.

    Use it from one thread alone: ptrace knows its tracer by that.

    Args:
        pid: the process.
        kind: what it has to be.
        thread: the thread's id.

    Raises:
        NotOursError: it isn't a `kind` of this graph, or has gone.
        OSError: ptrace isn't allowed here.
    """

    def __init__(self, pid: int, kind: str, thread: int) -> None:
        if kind_of(descendant_titles(os.getpid()).get(pid, "")) != kind:
            raise NotOursError(f"process {pid} isn't a {kind} of this graph")
        self._thread = thread
        self._is_traced = False
        self._call(PTRACE_SEIZE)
        self._is_traced = True
        self._call(PTRACE_INTERRUPT)

    def has_ended(self) -> bool:
        """Whether the thread has died meanwhile. A traced one is only gone when its tracer has seen that."""
        if not self._is_traced:
            return True
        try:
            pid, status = os.waitpid(self._thread, WAIT_FOR_THREADS | os.WNOHANG)
        except ChildProcessError:
            self._is_traced = False
            return True
        if pid and (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            self._is_traced = False
        return not self._is_traced

    def release(self) -> None:
        """Let it go on, if it is there."""
        if self.has_ended():
            return
        try:
            self._call(PTRACE_DETACH)
        except ProcessLookupError:
            # It dies now; its end has to be seen.
            os.waitpid(self._thread, WAIT_FOR_THREADS)
        self._is_traced = False

    def _call(self, request: int) -> None:
        if _ptrace(request, self._thread, None, None) == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def thread_times(pid: int) -> dict[int, int]:
    """The CPU time of every thread so far, in ticks."""
    times = {}
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        fields = _fields(thread / "stat")
        if fields:
            times[int(thread.name)] = int(fields[11]) + int(fields[12])
    return times


def busiest(before: dict[int, int], after: dict[int, int]) -> int:
    """The thread that used most CPU time between two `thread_times`."""
    return max(after, key=lambda thread: (after[thread] - before.get(thread, 0), thread))


def started_at(pid: int) -> int:
    """When it started, in ticks since the machine's start; 0: it has gone."""
    fields = _fields(Path(f"/proc/{pid}/stat"))
    return int(fields[19]) if fields else 0


def _fields(stat: Path) -> list[str]:
    """The fields of a stat file from the third, the state, on: the name before may hold anything."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except OSError:
        return []
