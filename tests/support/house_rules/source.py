"""The project's files as the rules read them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

SUFFIXES = {".py", ".cpp", ".h"}


class Breach(NamedTuple):
    """A place where a rule doesn't hold; sorts by place."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class SourceFile:
    """One file; `path` is relative to the project's folder, with slashes."""

    path: str
    text: str

    @property
    def num_lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def is_python(self) -> bool:
        return self.path.endswith(".py")

    @property
    def module(self) -> str:
        """The name by which others import it."""
        name = self.path.removesuffix(".py").removesuffix("/__init__")
        return name.replace("/", ".")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    def is_in(self, *folders: str) -> bool:
        """Whether it is anywhere below one of these folders."""
        return self.path.startswith(tuple(f"{folder}/" for folder in folders))


def read_files(root: Path, folders: Iterable[str]) -> list[SourceFile]:
    """Every source file below these folders of `root`, sorted by path."""
    return [
        SourceFile(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(_paths(root, folders))
    ]


def _paths(root: Path, folders: Iterable[str]) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in (root / folder).rglob("*") if path.suffix in SUFFIXES)
