"""How much memory a device has left, and whether a model's weights fit."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from app.engine.torch.model.architecture import Architecture
from app.errors import InsufficientMemoryError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device, meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Bytes that can still be allocated on `device`; on a cpu within the machine and the cgroup's limit.

    Where there is no `/proc/meminfo`, on macOS say, the machine's whole memory counts as available.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return int(min(_machine_bytes(meminfo), _cgroup_bytes(cgroup)))


def check_weights_fit(
    model_dir: Path, architecture: Architecture, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise unless `device` has room for the weights of the model in `model_dir`.

    Raises:
        InsufficientMemoryError: it has not.
    """
    needed, available = architecture.num_weights * dtype.itemsize, available_bytes(device)
    if needed > available:
        raise InsufficientMemoryError(
            f"{model_dir}: weights need {gib(needed)} in {dtype}, {device} has {gib(available)} free; "
            "use a smaller model, a 16-bit model.dtype or another device"
        )


def gib(num_bytes: int) -> str:
    """`num_bytes` for people."""
    return f"{num_bytes / 2**30:.2f} GiB"


def _machine_bytes(meminfo: Path) -> int:
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = meminfo.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


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
