"""vLLM's processes, as the machine sees them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_CORES = ("VLLM::EngineCore", "multiprocessing.spawn import spawn_main")
"""What an engine core's command line has: vLLM gives it a title, which doesn't always succeed."""


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which its parent hasn't waited for, doesn't."""
    return _parent_of(pid) is not None


def engine_cores(pid: int) -> list[int]:
    """The engine cores that are children of `pid`, the oldest first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        child = int(folder.name)
        if _parent_of(child) == pid:
            with suppress(OSError):
                command = (folder / "cmdline").read_text()
                if any(each in command for each in _CORES):
                    found.append(child)
    return sorted(found)


def _parent_of(pid: int) -> int | None:
    """The parent's pid; None: there is no such process that runs."""
    try:
        # After the name, which may hold anything: state, then the parent.
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)
