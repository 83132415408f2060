"""Memory in all: of the machine, and what a rank needs of it at least."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.config import AppConfig, load_config
from app.engine.check import ranks_in_memory
from app.engine.machine_memory import total_cpu_bytes
from app.errors import InsufficientMemoryError


def settings(folder: Path, num_blocks: int | None, **model: Any) -> AppConfig:
    return load_config(
        {"model": {"path": str(folder), **model}, "engine": {"cache": {"num_blocks": num_blocks}}}
    )


def test_the_total_is_the_machines_or_the_cgroups_where_that_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert total_cpu_bytes(meminfo, tmp_path) == 9000 * 1024
    for limit, total in (("max", 9000 * 1024), ("1000000", 1_000_000), ("99999999", 9000 * 1024)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert total_cpu_bytes(meminfo, tmp_path) == total


def test_a_machine_holds_fewer_ranks_the_more_blocks_each_has(tiny_llama_dir: Path) -> None:
    few, many = (
        ranks_in_memory(settings(tiny_llama_dir, blocks), tiny_llama_dir) for blocks in (16, 1 << 14)
    )
    assert few is not None
    assert many is not None
    assert 1 <= many < few


def test_a_longer_number_format_needs_more(tiny_llama_dir: Path) -> None:
    longer, shortest = (
        ranks_in_memory(settings(tiny_llama_dir, 64, dtype=dtype), tiny_llama_dir)
        for dtype in ("float32", "auto")
    )
    assert longer is not None
    assert shortest is not None
    assert 0 <= shortest - 2 * longer <= 1


def test_blocks_beyond_the_whole_memory_are_refused_with_the_number_that_fits(tiny_llama_dir: Path) -> None:
    with pytest.raises(InsufficientMemoryError) as caught:
        ranks_in_memory(settings(tiny_llama_dir, 10**12), tiny_llama_dir)
    message = str(caught.value)
    assert message.startswith("engine.cache.num_blocks = 1000000000000: the blocks need ")
    fitting = int(message.split("at most ")[1].split()[0])
    assert ranks_in_memory(settings(tiny_llama_dir, fitting), tiny_llama_dir) == 1
    with pytest.raises(InsufficientMemoryError):
        ranks_in_memory(settings(tiny_llama_dir, fitting + 1), tiny_llama_dir)


def test_nothing_is_known_of_other_engines(tiny_llama_dir: Path) -> None:
    config = load_config({"engine": {"backend": "vllm", "cache": {"num_blocks": 10**12}}})
    assert ranks_in_memory(config, tiny_llama_dir) is None
