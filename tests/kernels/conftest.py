"""The backends that every kernel test runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.backends import BACKENDS as AVAILABLE
from kernels.backends import CPU
from tests.kernels.harness import Backend

_WHY_NOT_CPU = AVAILABLE["cpu"].why_not(CPU)
BACKENDS = [
    pytest.param(Backend("reference", "cpu"), id="reference"),
    pytest.param(Backend("torch", "cpu"), id="torch"),
    pytest.param(
        Backend("cpu", "cpu"),
        id="cpu",
        marks=pytest.mark.skipif(_WHY_NOT_CPU is not None, reason=f"backend cpu: {_WHY_NOT_CPU}"),
    ),
]
# One process either interprets Triton or compiles it: see tests/conftest.py.
if torch.cuda.is_available():
    BACKENDS += [
        pytest.param(Backend("torch", "cuda"), id="torch-cuda", marks=pytest.mark.gpu),
        pytest.param(Backend("triton", "cuda"), id="triton-cuda", marks=pytest.mark.gpu),
    ]
else:
    BACKENDS += [pytest.param(Backend("triton", "cpu", is_interpreted=True), id="triton")]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend in turn, the plain one too: it must keep what the tests say of all."""
    chosen: Backend = request.param
    return chosen


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The tests' work is too small to share."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What an op allocates and doesn't write is NaN, not what happens to be there."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
