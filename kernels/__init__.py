"""The ops that a transformer step is made of, behind one explicit choice of backend.

`load_kernels(name, device)` gives a `Kernels`: every op of `kernels.interface` in that backend, which logs
the choice. A backend that is asked for and can't run raises; only `auto` chooses, by the order in
`kernels.backends`.

- `interface.py` says what each op computes, with its formula, shapes and layouts.
- `reference.py` is the plain version that the others are tested against.
- `cpu/` is C++, compiled and loaded by `cpu_library.py`.
- `<backend>_<subject>.py` hold a backend's versions; `<backend>_backend.py` has them all as `KERNELS`.

To add a backend: write the ops that it does better, fill in the rest from another one with
`dataclasses.replace(torch_backend.KERNELS, name=..., ...)`, add a `Backend` to `kernels.backends` that says
where it can't run and, if `auto` is to choose it, its place in `AUTO`; then add its name to `BACKENDS` in
`tests/kernels/conftest.py`, which runs every test of every op on it. `KernelBackend` in `app/config.py`
lets users choose it.
"""

from __future__ import annotations

from kernels.backends import BackendError, load_kernels
from kernels.interface import Kernels

__all__ = ["BackendError", "Kernels", "load_kernels"]
