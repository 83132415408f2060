"""Which backends there are, where each can run, and the choice of one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch

from kernels.cpu.library import CpuLibraryError, load_library
from kernels.interface import Kernels

logger = logging.getLogger("kernels")

CPU = torch.device("cpu")


class BackendError(Exception):
    """A kernel backend that doesn't exist, or can't run here, was asked for."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend. Its module is imported when it is chosen, since it may need what isn't installed."""

    module: str  # has `KERNELS: Kernels`
    why_not: Callable[[torch.device], str | None]  # why it can't run on a device; None where it can


def _runs_anywhere(device: torch.device) -> None:
    return None


def _why_not_triton(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'kvbeacon[triton]')"
    if device.type != "cuda" and not _is_triton_interpreted():
        return f"it runs on cuda; {device.type} needs TRITON_INTERPRET=1, set before triton is imported"
    return None


def _why_not_cpu(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it runs on cpu, not {device.type}"
    try:
        load_library()
    except CpuLibraryError as error:
        return str(error)
    return None


def _is_triton_interpreted() -> bool:
    return bool(import_module("kernels.triton.numerics").INTERPRETED.value)


BACKENDS = {
    "reference": Backend("kernels.reference", _runs_anywhere),
    "torch": Backend("kernels.torch.backend", _runs_anywhere),
    "cpu": Backend("kernels.cpu.backend", _why_not_cpu),
    "triton": Backend("kernels.triton.backend", _why_not_triton),
}

# What `auto` tries, in this order, by type of device; `torch` comes last and always runs.
AUTO = {"cuda": ("triton", "torch"), "cpu": ("cpu", "torch")}
AUTO_ELSEWHERE = ("torch",)


def load_kernels(name: str, device: torch.device = CPU) -> Kernels:
    """The ops of the backend `name` for tensors on `device`; `auto` is the first of `AUTO` that can run.

    Raises:
        BackendError: no such backend, or it can't run on the device; the message says which there are, or
            why it can't.
    """
    if name == "auto":
        return _load_first(AUTO.get(device.type, AUTO_ELSEWHERE), device)
    if name not in BACKENDS:
        raise BackendError(f"kernels = {name!r}: no such backend; allowed: auto, {', '.join(BACKENDS)}")
    reason = BACKENDS[name].why_not(device)
    if reason is not None:
        raise BackendError(f"kernels = {name!r}: {reason}")
    logger.info("kernels: %s on %s", name, device)
    return _kernels_of(name)


def _load_first(names: tuple[str, ...], device: torch.device) -> Kernels:
    reasons: list[str] = []
    for name in names:
        reason = BACKENDS[name].why_not(device)
        if reason is None:
            logger.info("kernels: %s on %s, chosen by auto%s", name, device, "".join(reasons))
            return _kernels_of(name)
        reasons.append(f"; not {name}: {reason}")
    raise BackendError(f"kernels = 'auto': no backend runs on {device}{''.join(reasons)}")


def _kernels_of(name: str) -> Kernels:
    kernels = import_module(BACKENDS[name].module).KERNELS
    assert isinstance(kernels, Kernels), "a backend's module has KERNELS"
    return kernels
