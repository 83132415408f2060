"""How much memory a device has left, and whether a model's weights fit."""

from __future__ import annotations

from pathlib import Path

import torch

from app.engine.machine_memory import CGROUP, MEMINFO, available_cpu_bytes, gib
from app.engine.torch.model.architecture import Architecture
from app.errors import InsufficientMemoryError


def available_bytes(device: torch.device, meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Bytes that can still be allocated on `device`; on a cpu see `available_cpu_bytes`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return available_cpu_bytes(meminfo, cgroup)


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
