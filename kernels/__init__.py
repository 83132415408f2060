"""The ops that a transformer step is made of, behind one explicit choice of backend.

`load_kernels(name)` gives a `Kernels`: every op of `kernels.interface` in that backend. `reference` is the
plain version that the others are tested against. There is no fallback: a backend that is asked for and
can't run raises.
"""

from __future__ import annotations

import logging

from kernels import (
    cpu_attention,
    cpu_elementwise,
    cpu_linear,
    reference,
    torch_attention,
    torch_elementwise,
    torch_linear,
)
from kernels.interface import Kernels

__all__ = ["BackendError", "Kernels", "load_kernels"]

logger = logging.getLogger(__name__)

_TORCH = Kernels(
    name="torch",
    store_kv=torch_elementwise.store_kv,
    plan_attention=torch_attention.plan_attention,
    rms_norm=torch_elementwise.rms_norm,
    rotary_embedding=torch_elementwise.rotary_embedding,
    silu_and_mul=torch_elementwise.silu_and_mul,
    pack_linear=torch_linear.pack_linear,
)

_CPU = Kernels(
    name="cpu",
    store_kv=cpu_elementwise.store_kv,
    plan_attention=cpu_attention.plan_attention,
    rms_norm=cpu_elementwise.rms_norm,
    rotary_embedding=cpu_elementwise.rotary_embedding,
    silu_and_mul=cpu_elementwise.silu_and_mul,
    pack_linear=cpu_linear.pack_linear,
)

_BACKENDS = {kernels.name: kernels for kernels in (reference.KERNELS, _TORCH, _CPU)}


class BackendError(Exception):
    """A kernel backend that doesn't exist, or can't run here, was asked for."""


def load_kernels(name: str) -> Kernels:
    """The ops of the backend `name`.

    Raises:
        BackendError: no such backend; the message lists those there are.
    """
    kernels = _BACKENDS.get(name)
    if kernels is None:
        raise BackendError(f"kernels = {name!r}: no such backend; allowed: {', '.join(_BACKENDS)}")
    logger.info("kernels: %s", name)
    return kernels
