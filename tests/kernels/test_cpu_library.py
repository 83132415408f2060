"""When the C++ library can be had, and what is said when it can't."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernels.backends import BACKENDS, CPU
from kernels.cpu.library import CpuLibraryError, open_library

WHY_NOT = BACKENDS["cpu"].why_not(CPU)


@pytest.fixture
def capable_cpu(tmp_path: Path) -> Path:
    """What Linux says of a cpu that has the instructions."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Some CPU\nflags\t\t: fpu avx512f avx512_bf16\n")
    return cpuinfo


def name_of(library: ctypes.CDLL) -> str:
    return library._name


@pytest.mark.skipif(WHY_NOT is not None, reason=f"backend cpu: {WHY_NOT}")
def test_ranks_that_start_at_once_end_with_one_library_that_needs_no_compiler_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "folder"
    with ThreadPoolExecutor() as threads:
        names = set(map(name_of, threads.map(open_library, [folder] * 2)))
    assert {str(path) for path in folder.iterdir()} == names, "nothing half-made is left"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert name_of(open_library(folder)) in names
    (library,) = folder.iterdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / library.name).write_bytes(b"not a library")
    with pytest.raises(CpuLibraryError, match="can't be made or loaded"):
        open_library(broken)


def test_a_cpu_without_the_instructions_is_named(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n")
    with pytest.raises(CpuLibraryError, match="no AVX-512 BF16"):
        open_library(tmp_path, cpuinfo)


def test_without_a_compiler_it_says_so(
    tmp_path: Path, capable_cpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CpuLibraryError, match=r"neither g\+\+ nor clang\+\+"):
        open_library(tmp_path / "cache", capable_cpu)


def test_a_compiler_that_fails_is_quoted(
    tmp_path: Path, capable_cpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\necho "no such header" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(CpuLibraryError, match="failed: no such header"):
        open_library(tmp_path / "cache", capable_cpu)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path, capable_cpu: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CpuLibraryError, match=r"file/cache.*can't be made or loaded"):
        open_library(tmp_path / "file" / "cache", capable_cpu)
