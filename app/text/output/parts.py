"""The parts that an output's text falls into, and what a parser of them has to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of what is said."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what is thought before it is said."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of a tool begins. `index`: its number in the output."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of a call's arguments, which are the JSON of an object."""

    index: int
    text: str


Part = Text | Thought | CallStart | CallArguments


class OutputParser(Protocol):
    """Takes one output's text in pieces. What the parts say doesn't depend on how the text is cut."""

    def push(self, text: str) -> list[Part]:
        """The parts that have become certain with this piece."""
        ...

    def flush(self) -> list[Part]:
        """What was held back. The output is over."""
        ...


class PlainParser:
    """All of the output is text."""

    def push(self, text: str) -> list[Part]:
        """See `OutputParser`."""
        return [Text(text)] if text else []

    def flush(self) -> list[Part]:
        """See `OutputParser`."""
        return []


class TextBeforeMark:
    """Text up to a mark. White space at its end is held back: before a call it is left out."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._held = ""

    def push(self, text: str, parts: list[Part]) -> str | None:
        """Add what may be shown to `parts`; returns what follows the mark, None before there is one."""
        self._held += text
        before, found, after = self._held.partition(self._mark)
        if found:
            free, self._held = before.rstrip(), ""
        else:
            num_free = len(self._held) - num_begun(self._held, self._mark)
            num_free = len(self._held[:num_free].rstrip())
            free, self._held = self._held[:num_free], self._held[num_free:]
        if free:
            parts.append(Text(free))
        return after if found else None

    def flush(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def num_begun(text: str, mark: str) -> int:
    """How many characters at the end of `text` are a beginning of `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)
