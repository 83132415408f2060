"""How much memory a machine and its GPUs have, and how much a CPU's is free; without torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
NVIDIA_SMI_TIMEOUT_S = 20.0


def total_cpu_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Bytes of the whole machine, or of the cgroup's limit where that is less."""
    limit = _read(cgroup / "memory.max")
    total = _meminfo(meminfo, "MemTotal")
    return total if limit in ("", "max") else min(total, int(limit))


def available_cpu_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Bytes that can still be allocated, within the machine and the cgroup's limit.

    Where there is no `/proc/meminfo`, on macOS say, the machine's whole memory counts as available.
    """
    return int(min(_meminfo(meminfo, "MemAvailable"), _cgroup_bytes(cgroup)))


def total_gpu_bytes() -> int | None:
    """Bytes of the smallest NVIDIA GPU here; None where its driver's tool doesn't say.

    It says so also to a process to which Ray gives no GPU.
    """
    try:
        output = subprocess.run(
            NVIDIA_SMI, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        ).stdout
        return min(int(line) for line in output.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def gib(num_bytes: int) -> str:
    """`num_bytes` for people."""
    return f"{num_bytes / 2**30:.2f} GiB"


def _meminfo(meminfo: Path, name: str) -> int:
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = meminfo.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _cgroup_bytes(cgroup: Path) -> float:
    """What a version 2 cgroup has left, counting file cache that can be dropped; infinite without one."""
    limit = _read(cgroup / "memory.max")
    if limit in ("", "max"):
        return float("inf")
    droppable = sum(
        int(line.split()[1])
        for line in _read(cgroup / "memory.stat").splitlines()
        if line.startswith("inactive_file ")
    )
    return max(0, int(limit) - int(_read(cgroup / "memory.current") or 0) + droppable)


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
