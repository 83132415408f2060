"""The house's countable rules: `python -m tests.support.house_rules [--counts]`.

Exits with 1 if a rule is broken, after a line for each place, with what is allowed there.

ruff holds that no import is inside a function, import-linter that imports go one way and in no circle.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.house_rules import private_members, sizes
from tests.support.house_rules.source import SourceFile, read_files

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("app", "kernels", "benchmarks", "examples", "tests")


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Print every breach, or with `--counts` how large everything is; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.house_rules", description=__doc__)
    parser.add_argument(
        "--counts", action="store_true", help="print how large everything is, and check nothing"
    )
    files = read_files(root, FOLDERS)
    if parser.parse_args(arguments).counts:
        print("\n".join(describe(files)))
        return 0
    breaches = sorted([*sizes.check(files), *private_members.check(files)])
    for breach in breaches:
        print(breach)
    if breaches:
        print(f"{len(breaches)} breaches of the house's rules")
    return 1 if breaches else 0


def describe(files: Sequence[SourceFile]) -> Iterator[str]:
    """Lines that say how many files, lines and functions there are, and how large."""
    for folder in FOLDERS:
        inside = [file for file in files if file.is_in(folder)]
        if not inside:
            continue
        lines = [file.num_lines for file in inside]
        largest = max(inside, key=lambda file: file.num_lines)
        yield (
            f"{folder}: {len(inside)} files, {sum(lines)} lines, median {statistics.median(lines):g}, "
            f"largest {largest.num_lines} ({largest.path})"
        )
    function_lines = sorted(function.num_lines for function in sizes.functions(files))
    if function_lines:
        yield (
            f"functions of app and kernels: {len(function_lines)}, "
            f"lines: median {statistics.median(function_lines):g}, "
            f"95th percentile {sizes.percentile(function_lines, 95)}, longest {function_lines[-1]}"
        )
    yield "Python files a folder:"
    for folder, count in sizes.folder_sizes(files).items():
        yield f"  {count:3} {folder}"


if __name__ == "__main__":
    raise SystemExit(main())
