"""The rules that `make lint` counts fail where they should, on made-up files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.house_rules import private_members, sizes
from tests.support.house_rules.__main__ import ROOT, describe, main
from tests.support.house_rules.source import SourceFile

BASE = SourceFile(
    "app/base.py",
    """
class Base:
    def __init__(self):
        self._own = 1

    def _helper(self):
        return self._own
""",
)


def module(text: str, path: str = "app/module.py") -> SourceFile:
    return SourceFile(path, text)


def package(folder: str, count: int) -> list[SourceFile]:
    names = ["__init__", *(f"module_{number}" for number in range(count - 1))]
    return [SourceFile(f"{folder}/{name}.py", "") for name in names]


def function(num_lines: int, path: str) -> SourceFile:
    return SourceFile(path, "def f():\n" + "    pass\n" * (num_lines - 1))


@pytest.mark.parametrize("count", [2, 12])
def test_a_folder_of_2_to_12_python_files_is_allowed(count: int) -> None:
    assert list(sizes.check(package("app/room", count))) == []


@pytest.mark.parametrize("count", [1, 13])
def test_a_folder_of_another_size_is_a_breach(count: int) -> None:
    files = [*package("app/room", count), *package("app/room/inner", 3)]
    (breach,) = sizes.check(files)
    assert str(breach) == f"app/room:1: {count} Python files in a folder; allowed are 2 to 12"


def test_folders_outside_app_may_have_any_size() -> None:
    assert list(sizes.check(package("tests/room", 1) + package("kernels/room", 13))) == []


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("app/room/long.py", 400),
        ("kernels/cpu/long.cpp", 400),
        ("benchmarks/long.py", 400),
        ("examples/long.py", 400),
        ("tests/room/test_long.py", 450),
    ],
)
def test_a_file_has_a_most_of_lines(path: str, most: int) -> None:
    neighbour = SourceFile("app/room/other.py", "")
    assert list(sizes.check([SourceFile(path, "x = 1\n" * most), neighbour, *package("app/room", 2)])) == []
    breaches = sizes.check([SourceFile(path, "x = 1\n" * (most + 1)), neighbour, *package("app/room", 2)])
    assert [str(breach) for breach in breaches] == [
        f"{path}:{most + 1}: {most + 1} lines in a file; allowed are {most}"
    ]


def test_more_than_one_function_in_twenty_over_22_lines_is_a_breach() -> None:
    short = [function(22, f"kernels/short_{number}.py") for number in range(19)]
    assert list(sizes.check([*short, function(60, "kernels/long.py")])) == []
    (breach,) = sizes.check([*short[1:], function(60, "kernels/long.py"), function(23, "kernels/longer.py")])
    assert (breach.path, breach.line) == ("kernels/long.py", 1)
    assert "95th percentile" in breach.message
    assert "allowed are 22" in breach.message


def test_functions_outside_app_and_kernels_are_not_counted() -> None:
    assert list(sizes.check([function(100, "benchmarks/long.py"), function(100, "tests/long.py")])) == []


def test_a_method_and_an_inner_function_are_counted() -> None:
    text = "class A:\n    async def f(self):\n        def g():\n            pass\n        return g\n"
    found = sizes.functions([SourceFile("app/a.py", text)])
    assert [(each.name, each.line, each.num_lines) for each in found] == [("f", 2, 4), ("g", 3, 2)]


@pytest.mark.parametrize(
    "text",
    [
        "from app.base import _helper",
        "from app._base import Base",
        "import app._base",
        "import app.base as base\nbase._helper()",
        "from app import base\n_helper = 1\nbase._helper()",
        "from app.base import Base\nBase()._own = 2",
        "from app.base import Base\ndef f(thing: Base):\n    return [thing.other[0]._own]",
        "from app.base import Base\nclass A(Base):\n    def f(self):\n        return self._own",
        "from app.base import Base\nclass A(Base):\n    def f(self):\n        self._own = 2",
        "from app.base import Base\nclass A(Base):\n    def f(self):\n        return super()._helper()",
        "import app.base\nclass A(app.base.Base):\n    def f(self):\n        return self._helper()",
        "import app.base\nclass _helper: pass\napp.base._helper",
        "from app.base import Base\nclass A(Base):\n    _own = 2\n    def f(self):\n        return self._own",
        "import ast\nclass A(ast.NodeVisitor):\n    def f(self):\n        return self._hidden",
        "import torch\nflag = torch._C",
        "getattr(thing, '_own')",
        "def test(monkeypatch):\n    monkeypatch.setattr('app.base._helper', 1)",
        "def test(monkeypatch):\n    monkeypatch.setattr(thing, '_helper', 1)",
    ],
)
def test_a_private_member_of_another_module_is_a_breach(text: str) -> None:
    breaches = set(private_members.check([BASE, module(text)]))
    assert breaches
    assert {breach.path for breach in breaches} == {"app/module.py"}
    assert all("private member of another module; allowed is what" in breach.message for breach in breaches)


@pytest.mark.parametrize(
    "text",
    [
        "def _helper():\n    return __name__\n_helper()",
        "class A:\n    _a: int = 1\n    def __eq__(self, other):\n        return other._a == self._a",
        "class A:\n    _a: int = 1\nclass B(A):\n    def f(self):\n        return self._a, super()._a",
        "class A:\n    def __init__(self):\n        self._a = 1\ndef test():\n    return A()._a",
        "class A:\n    _ids = iter(())\n    @classmethod\n    def f(cls):\n        return next(cls._ids)",
        "class A:\n    def _f(self):\n        pass\n    def g(self):\n        getattr(self, '_f')",
        "from app.base import Base\nclass A(Base):\n    _a = 2\n    def f(self):\n        return self._a",
        "from typing import NamedTuple\nclass A(NamedTuple):\n    a: int\nA(1)._replace(a=2)._asdict()",
        "import torch\ntorch.ops.mkldnn._linear_pointwise()",
        "for _ in (): pass\nthing.__dict__",
        "from __future__ import annotations",
        "from app import __version__",
        "print('_helper')",
    ],
)
def test_what_a_module_defines_itself_and_what_only_looks_private_is_allowed(text: str) -> None:
    assert list(private_members.check([BASE, module(text)])) == []


def test_a_breach_names_its_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "speed.py").write_text("import time\n\ntime._private\n")
    assert main([], tmp_path) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("benchmarks/speed.py:3: time._private: ")
    assert last == "1 breaches of the house's rules"


def test_no_breach_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "app").mkdir()
    for name in ("__init__", "module"):
        (tmp_path / "app" / f"{name}.py").write_text("")
    assert main([], tmp_path) == 0
    assert capsys.readouterr().out == ""


def test_the_counts_are_of_files_functions_and_folders(capsys: pytest.CaptureFixture[str]) -> None:
    files = [function(3, "app/a.py"), function(5, "app/b.py"), function(7, "tests/c.py")]
    assert list(describe(files)) == [
        "app: 2 files, 8 lines, median 4, largest 5 (app/b.py)",
        "tests: 1 files, 7 lines, median 7, largest 7 (tests/c.py)",
        "functions of app and kernels: 2, lines: median 4, 95th percentile 5, longest 5",
        "Python files a folder:",
        "    2 app",
        "    1 tests",
    ]
    assert main(["--counts"], ROOT) == 0
    assert "functions of app and kernels" in capsys.readouterr().out
