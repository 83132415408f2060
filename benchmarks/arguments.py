"""Types for the arguments of benchmarks' command lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)
Item = TypeVar("Item")


def positive(parse: Callable[[str], Number]) -> Callable[[str], Number]:
    """An argparse type for a number above 0."""

    def number(text: str) -> Number:
        value = parse(text)
        if value <= 0:
            raise ValueError(text)
        return value

    return number


def list_of(parse: Callable[[str], Item]) -> Callable[[str], list[Item]]:
    """An argparse type for items separated by commas."""

    def items(text: str) -> list[Item]:
        return [parse(part) for part in text.split(",")]

    return items
