"""What a benchmark ran on, for its JSON: figures of different machines can't be compared."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import ray
import torch

_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Of x86, by Linux' names: those that decide how fast a model runs."""


def machine() -> dict[str, Any]:
    """The machine and the versions of what runs the graph, as JSON."""
    return {
        "cpus": os.cpu_count(),
        "load_average_1m": os.getloadavg()[0],
        "architecture": platform.machine(),
        "instruction_sets": instruction_sets(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def instruction_sets() -> list[str]:
    """Which of `_INSTRUCTION_SETS` the CPU has; none where Linux doesn't say."""
    flags = _CPUINFO.read_text().split() if _CPUINFO.exists() else []
    return [name for name in _INSTRUCTION_SETS if name in flags]
