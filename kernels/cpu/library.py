"""Compiles `kernels/cpu/*.cpp` once per machine and loads it: the C functions behind the `cpu` backend.

The library is kept in the user's cache folder under a name made from the sources, the flags and the cpu, so
a change of any of these makes a new one, and a second start finds it there, compiler or not.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from torch import Tensor

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-w")
CPUINFO = Path("/proc/cpuinfo")
COMPILE_TIMEOUT_S = 300


class CpuLibraryError(Exception):
    """The library can't be had here; says why."""


@functools.cache
def load_library() -> ctypes.CDLL:
    """The library, from the user's cache folder; made first if need be.

    Raises:
        CpuLibraryError: as for `open_library`.
    """
    return open_library(_cache_dir())


def open_library(folder: Path, cpuinfo: Path = CPUINFO) -> ctypes.CDLL:
    """The library whose file is in `folder`, or is put there now; every rank of a machine may try at once.

    Raises:
        CpuLibraryError: the cpu lacks the instructions, there is no compiler, it fails, or the file can't be
            written or loaded.
    """
    library = folder / f"kvbeacon_cpu-{_fingerprint(_describe_cpu(cpuinfo))}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(library)
        return _declare(ctypes.CDLL(str(library)))
    except (OSError, subprocess.SubprocessError) as error:
        raise CpuLibraryError(f"{library} can't be made or loaded: {error}") from error


_POINTER, _INT64, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "kvb_packed_size": (_INT64, [_INT64] * 2),
    "kvb_pack": (None, [_POINTER, _INT64, _INT64, _POINTER, _INT]),
    "kvb_linear": (
        None,
        [_POINTER, _POINTER, _INT64, _INT64, _POINTER, _INT64, _INT64, _POINTER, _INT, _INT],
    ),
    "kvb_gated_linear": (
        None,
        [_POINTER, _POINTER, _INT64, _INT64, _POINTER, _INT64, _INT64, _POINTER, _INT],
    ),
    "kvb_rms_norm": (None, [_POINTER, _INT64, _POINTER, _POINTER, _INT64, _INT64, _FLOAT, _INT]),
    "kvb_fused_add_rms_norm": (
        None,
        [_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _INT64, _INT64, _FLOAT, _INT],
    ),
    "kvb_rotary_embedding": (
        None,
        [_POINTER, _INT64, _POINTER, _POINTER, _POINTER, _INT64, _INT64, _INT64, _INT],
    ),
    "kvb_silu_and_mul": (None, [_POINTER, _POINTER, _INT64, _INT64, _INT]),
    "kvb_store_kv": (
        None,
        [_POINTER, _INT64, _POINTER, _INT64, _POINTER, _POINTER, _POINTER, _INT64, _INT64, _INT],
    ),
    "kvb_attention": (
        None,
        [_POINTER, _INT64, _INT64, _INT64, _POINTER, _INT64, _POINTER, _POINTER, _POINTER, _POINTER, _INT],
    ),
}


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def rows(x: Tensor) -> Tensor:
    """`x` with each row's numbers side by side, as the library reads them; a copy if need be."""
    dense = x.stride(-1) == 1 and (x.dim() < 3 or x.stride(-2) == x.shape[-1])
    return x if dense else x.contiguous()


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers are, as the library takes it; None is a null pointer."""
    return None if tensor is None else tensor.data_ptr()


def _describe_cpu(cpuinfo: Path) -> str:
    """What tells one kind of cpu from another."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise CpuLibraryError(f"built for x86-64 Linux, this is {platform.machine()} {platform.system()}")
    lines = cpuinfo.read_text().splitlines()
    described = {
        line.split(":")[0].strip(): line for line in lines if line.startswith(("model name", "flags"))
    }
    if "avx512_bf16" not in described.get("flags", "").split():
        raise CpuLibraryError("the cpu has no AVX-512 BF16 instructions")
    return "\n".join(described.values())


def _fingerprint(cpu: str) -> str:
    parts = [cpu, *FLAGS, *(path.read_text() for path in sorted(SOURCES.glob("*.[ch]*")))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cache_dir() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvbeacon" / "kernels"
    except RuntimeError as error:
        raise CpuLibraryError(f"no folder to keep it in: {error}") from error


def _compile(library: Path) -> None:
    """Compiles beside `library` and moves it there whole."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise CpuLibraryError("neither g++ nor clang++ is installed")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
        command = [compiler, *FLAGS, "-o", str(made), *sources]
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
        if result.returncode != 0:
            raise CpuLibraryError(f"{compiler} failed: {result.stderr.strip()[-1000:]}")
        made.replace(library)
    logger.info("kernels compiled in %.0f s: %s", time.monotonic() - started, library)
