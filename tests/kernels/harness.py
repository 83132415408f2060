"""What the tests of all kernels share: where a backend runs, how exact it must be, which cases there are."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.backends import load_kernels
from kernels.interface import Kernels

Op = Callable[[Kernels], Callable[..., Any]]
"""Chooses an op of a backend: `lambda kernels: kernels.rms_norm`."""

ROOT = Path(__file__).parents[2]
PLAIN = load_kernels("reference")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (query heads, key/value heads)
HEADS = [(4, 4), (8, 2), (9, 3), (5, 1)]
HEAD_DIMS = [64, 80, 128, 256]
BLOCK_SIZES = [1, 8, 16, 32]
# Candidates from which each combination of a covering set is chosen.
CANDIDATES = 30


@dataclass(frozen=True)
class Backend:
    """A backend on a device."""

    name: str
    device: str
    is_interpreted: bool = False  # hundreds of times slower

    @property
    def kernels(self) -> Kernels:
        """Its ops."""
        return load_kernels(self.name, torch.device(self.device))

    def run(self, op: Op, *inputs: Any) -> Any:
        """An op's result for inputs that lie on the cpu, on the cpu."""
        result = op(self.kernels)(*(self.place(value) for value in inputs))
        return tuple(value.cpu() for value in result) if isinstance(result, tuple) else result.cpu()

    def place(self, value: Any) -> Any:
        """A tensor on the backend's device; anything else as it is."""
        return value.to(self.device) if isinstance(value, Tensor) else value


def assert_exact(fast: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Check a kernel's result against the plain version in the same dtype and in float64.

    Its error may be twice the plain one's, as a root mean square. The largest error of a few thousand numbers
    is a matter of luck, and differs by more between two orders of adding up the same numbers: four times the
    plain one's is what an element that is wrong exceeds. Both results are rounded to their dtype, so half a
    unit in the last place is no version's fault and counts as the plain version's error at least.
    """
    assert fast.shape == exact.shape
    assert fast.dtype == plain.dtype
    if fast.numel() == 0:
        return
    half_unit = torch.finfo(fast.dtype).eps / 2
    for size, allowed_ratio in ((_root_mean_square, 2), (_largest, 4)):
        allowed = allowed_ratio * max(size(plain.double() - exact), half_unit * size(exact))
        assert size(fast.double() - exact) <= allowed


def _root_mean_square(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


def check_op(backend: Backend, op: Op, *inputs: Any) -> None:
    """`assert_exact` for an op that returns what it computes, a tensor or several."""
    wide = [value.double() if isinstance(value, Tensor) else value for value in inputs]
    results = backend.run(op, *inputs), op(PLAIN)(*inputs), op(PLAIN)(*wide)
    tuples = [result if isinstance(result, tuple) else (result,) for result in results]
    for fast, plain, exact in zip(*tuples, strict=True):
        assert_exact(fast, plain, exact)


def covering(*dimensions: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few combinations of one value per dimension in which any two values of two dimensions meet."""
    sizes = [range(len(dimension)) for dimension in dimensions]
    # A dict, unlike a set, keeps one order in every process.
    missing = dict.fromkeys(
        ((a, i), (b, j))
        for a, b in itertools.combinations(range(len(sizes)), 2)
        for i, j in itertools.product(sizes[a], sizes[b])
    )
    rng = random.Random(0)
    rows: list[tuple[Any, ...]] = []
    while missing:
        (a, i), (b, j) = next(iter(missing))
        candidates = [[rng.choice(size) for size in sizes] for _ in range(CANDIDATES)]
        for candidate in candidates:
            candidate[a], candidate[b] = i, j
        best = max(candidates, key=lambda candidate: sum(pair in missing for pair in _pairs(candidate)))
        for pair in _pairs(best):
            missing.pop(pair, None)
        rows.append(tuple(dimension[index] for dimension, index in zip(dimensions, best, strict=True)))
    return rows


def _pairs(row: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    return list(itertools.combinations(enumerate(row), 2))


def run_uninterpreted(*arguments: str, **environment: str) -> str:
    """What Python prints for `arguments` in a new process where Triton compiles, with more `environment`."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout
