"""The processes of a graph, as the machine sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CONTROLLER = "ServeController"


def replica_pids(deployment: str, started_by: int) -> list[int]:
    """The replicas of `deployment` in the Ray cluster that process `started_by` has started, by their ids."""
    return sorted(pids_of_kind(deployment, started_by))


def controller_pid(started_by: int) -> int:
    """The Serve controller's process in that cluster."""
    (pid,) = pids_of_kind(CONTROLLER, started_by)
    return pid


def pids_of_kind(kind: str, started_by: int) -> list[int]:
    """The processes that `started_by` has started, or one of those, whose `kind_of` this is."""
    return [pid for pid, title in descendant_titles(started_by).items() if kind_of(title) == kind]


def kind_of(title: str) -> str:
    """What a process is by its title: a deployment's name, another part of Serve or Ray; empty: not known.

    Ray's titles: `ray::ServeReplica:application:deployment`, perhaps with a method behind a dot, and
    `ray::ServeController`, `ray::ProxyActor`, with one too; its own programs have paths.
    """
    name = title.split(" ")[0]
    if name.startswith("ray::ServeReplica:"):
        return name.split(":")[-1].split(".")[0]
    if name.startswith("ray::"):
        actor = name.removeprefix("ray::").split(".")[0]
        return actor if actor in (CONTROLLER, "ProxyActor") else ""
    program = Path(name).name
    return program if program in ("raylet", "gcs_server", "haproxy") else ""


def descendant_titles(ancestor: int) -> dict[int, str]:
    """The title of every process that `ancestor` has started, or one of those: its command's first word."""
    return {pid: title for pid in _descendants(ancestor) if (title := _title(pid))}


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


def _title(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline")).partition("\0")[0].strip()


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # it has ended
        return ""
