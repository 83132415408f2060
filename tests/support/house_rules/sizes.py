"""How large folders, files and functions may be."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.support.house_rules.source import Breach, SourceFile

FOLDER_FILES = range(2, 13)
"""Python files of a folder of `app`, its `__init__` counted."""
SOURCE_LINES = 400
TEST_LINES = 450
FUNCTION_LINES = 22
"""That 95% of the functions of `app` and `kernels` keep to."""


class Function(NamedTuple):
    """A function or method; `num_lines` from `def` to its last line, docstring included."""

    path: str
    line: int
    name: str
    num_lines: int


def folder_sizes(files: Sequence[SourceFile]) -> dict[str, int]:
    """The number of Python files directly in each folder."""
    return dict(sorted(Counter(file.folder for file in files if file.is_python).items()))


def functions(files: Sequence[SourceFile]) -> list[Function]:
    """Every function of `app` and `kernels`, the longest first."""
    found = [
        Function(file.path, node.lineno, node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for file in files
        if file.is_python and file.is_in("app", "kernels")
        for node in ast.walk(file.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(found, key=lambda function: function.num_lines, reverse=True)


def percentile(sorted_values: Sequence[int], percent: int) -> int:
    """The smallest value that at least `percent` % of the ascending values don't exceed; 0 of none."""
    if not sorted_values:
        return 0
    return sorted_values[max(0, math.ceil(len(sorted_values) * percent / 100) - 1)]


def check(files: Sequence[SourceFile]) -> Iterator[Breach]:
    """Every folder, file and set of functions that is too large, or too small to be a folder."""
    for folder, count in folder_sizes([file for file in files if file.is_in("app")]).items():
        if count not in FOLDER_FILES:
            message = f"{count} Python files in a folder; allowed are {FOLDER_FILES[0]} to {FOLDER_FILES[-1]}"
            yield Breach(folder, 1, message)
    for file in files:
        most = TEST_LINES if file.is_in("tests") else SOURCE_LINES
        if file.num_lines > most:
            yield Breach(file.path, file.num_lines, f"{file.num_lines} lines in a file; allowed are {most}")
    longest = functions(files)
    found = percentile([function.num_lines for function in reversed(longest)], 95)
    if found > FUNCTION_LINES:
        first = longest[0]
        message = (
            f"the 95th percentile of all functions' lines is {found}; allowed are {FUNCTION_LINES} "
            f"(the longest is {first.name} with {first.num_lines})"
        )
        yield Breach(first.path, first.line, message)
