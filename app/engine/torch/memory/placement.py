"""Where a model runs, in which number format and on whose kernels."""

from __future__ import annotations

import torch

from app.errors import ConfigError
from app.settings.engine import KernelBackend
from app.settings.model import Device, Dtype
from kernels.backends import BackendError, load_kernels
from kernels.interface import Kernels

_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_device(device: Device) -> torch.device:
    """The device that `device` names; `auto` takes cuda where there is one.

    Raises:
        ConfigError: cuda is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("model.device = 'cuda': torch finds no cuda device; allowed here: auto, cpu")
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")


def resolve_dtype(dtype: Dtype, device: torch.device, checkpoint_dtype: str | None) -> torch.dtype:
    """The format that `dtype` names; `auto` takes what runs fastest on `device`.

    On cuda that is the checkpoint's own 16-bit format. On a cpu it is bfloat16 only where oneDNN has
    instructions for it (AVX-512 or AMX): without them torch converts inside every multiplication. Measured
    on 2 Zen 3 cores (AVX2), the linear layers of SmolLM2-135M take in float32 / bfloat16: 28 / 336 ms for 1
    token, 49 / 585 ms for 8, 0.7 / 6.0 s for 512.
    """
    if dtype != "auto":
        return _DTYPES[dtype]
    if device.type == "cuda":
        return torch.float16 if checkpoint_dtype == "float16" else torch.bfloat16
    # Builds without oneDNN, Apple's for instance, don't even have the question.
    has_bfloat16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def resolve_kernels(backend: KernelBackend, device: torch.device) -> Kernels:
    """The kernels that `backend` names; `auto` takes what is made for `device`.

    Raises:
        ConfigError: they can't run on the device.
    """
    try:
        return load_kernels(backend, device)
    except BackendError as error:
        raise ConfigError(f"engine.{error}") from None
