"""The processes of a graph's replicas, as the machine sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def replica_pids(deployment: str, started_by: int) -> list[int]:
    """The replicas of `deployment` in the Ray cluster that process `started_by` has started, by their ids.

    Ray gives a replica's process the title `ray::ServeReplica:application:deployment`, and perhaps a method.
    """
    titles = {pid: title for pid in _descendants(started_by) if (title := _title(pid)) is not None}
    return sorted(pid for pid, title in titles.items() if title.split(".")[0].endswith(f":{deployment}"))


def controller_pid(started_by: int) -> int:
    """The Serve controller's process in that cluster."""
    (pid,) = [pid for pid in _descendants(started_by) if _title(pid, "ray::ServeController") is not None]
    return pid


def _descendants(ancestor: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        stat = _read(process / "stat")
        if stat:
            # The name in brackets may hold anything; the state and the parent come after it.
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(process.name))
    found = children.get(ancestor, [])
    while found:
        yield from found
        found = [child for pid in found for child in children.get(pid, [])]


def _title(pid: int, kind: str = "ray::ServeReplica:") -> str | None:
    title = _read(Path(f"/proc/{pid}/cmdline")).partition("\0")[0].strip()
    return title if title.startswith(kind) else None


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # it has ended
        return ""
