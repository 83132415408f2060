from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.harness import run_uninterpreted

SCRIPT = Path(__file__).with_name("compile_for_gpu.py")
KERNELS = {"_attend", "_norm", "_rotate", "_silu_and_mul", "_store"}
# Per block on GPUs of compute capability 8.6, which have the least since 8.0.
SHARED_MEMORY_BYTES = 99 * 1024


@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_kernel_compiles_for_a_gpu_and_fits_its_shared_memory(capability: str, tmp_path: Path) -> None:
    """What the interpreter doesn't show: Triton's compiler takes less than Python."""
    printed = run_uninterpreted(str(SCRIPT), capability, TRITON_CACHE_DIR=str(tmp_path))
    kernels = [line.split() for line in printed.splitlines()]
    assert {name for name, _ in kernels} == KERNELS
    assert max(int(shared) for _, shared in kernels) <= SHARED_MEMORY_BYTES
