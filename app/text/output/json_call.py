"""One call in JSON, `{"name": …, "arguments": {…}}`, character by character.

Arguments are passed on as they are written as soon as the name is known. Where they come before the name, or
as a string of JSON, they are passed on in one piece.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from app.text.output.parts import CallArguments, CallStart, Part

_ARGUMENTS = ("arguments", "parameters")


class JsonNesting:
    """How deep in a JSON text the last character was."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self._escaped = False

    def take(self, character: str) -> None:
        """Take the next character."""
        if self.in_string:
            self.in_string = self._escaped or character != '"'
            self._escaped = not self._escaped and character == "\\"
        elif character == '"':
            self.in_string = True
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1


class JsonCall:
    """A call that is being written.

    Attributes:
        is_done: whether the object is closed.
        is_broken: whether it can't become a call.
        raw: what was written until its name was known.
    """

    def __init__(self, index: int, names: Collection[str] | None = None) -> None:
        """`names`: those that a call may have, if others make it none."""
        self._index = index
        self._names = names
        self._nesting = JsonNesting()
        self._key: str | None = None
        self._value: list[str] = []
        self._is_object = False
        self._name: str | None = None
        self._waiting: str | None = None
        self._has_begun = False
        self._new: list[str] = []
        self.is_done = self.is_broken = False
        self.raw = ""

    @property
    def is_named(self) -> bool:
        """Whether its name is known: then it has been begun."""
        return self._name is not None

    def push(self, text: str) -> tuple[list[Part], str]:
        """The parts that have become certain, and what follows the call."""
        parts: list[Part] = []
        rest = ""
        for place, character in enumerate(text):
            self.raw += "" if self.is_named else character
            self._take(character, parts)
            if self.is_done or self.is_broken:
                rest = text[place + 1 :]
                break
        if self._new:
            parts.append(CallArguments(self._index, "".join(self._new)))
            self._new.clear()
        return parts, rest

    def _take(self, character: str, parts: list[Part]) -> None:
        nesting = self._nesting
        was_in_string = nesting.in_string
        nesting.take(character)
        if nesting.depth == 0:
            self._end_value(parts)
            self.is_done = True
            self.is_broken = not self.is_named
        elif nesting.depth == 1 and not (nesting.in_string or was_in_string) and character in ",:":
            if character == ",":
                self._end_value(parts)
            elif self._key is None:
                self._key = _read("".join(self._value).strip())
                self._value.clear()
                self._is_object = False
        elif self._has_begun:
            self._take_value(character)
        self._has_begun = True

    def _take_value(self, character: str) -> None:
        """Arguments of a known call are passed on as they come, without the white space around them."""
        is_first = not (self._value or self._is_object)
        if is_first and character.isspace():
            return
        self._is_object = self._is_object or (is_first and character == "{")
        if not self._is_streamed:
            self._value.append(character)
        elif self._nesting.depth > 1 or character == "}":
            self._new.append(character)

    @property
    def _is_streamed(self) -> bool:
        return self._is_object and self.is_named and self._key in _ARGUMENTS

    def _end_value(self, parts: list[Part]) -> None:
        key, value = self._key, "".join(self._value).strip()
        if key == "name" and not self.is_named:
            self._begin(_read(value), parts)
        elif key in _ARGUMENTS and not self._is_streamed:
            self._waiting = value if value.startswith("{") else _read(value) or "{}"
            self._release()
        self._value.clear()
        self._key, self._is_object = None, False

    def _begin(self, name: str | None, parts: list[Part]) -> None:
        if name is None or (self._names is not None and name not in self._names):
            self.is_broken = True
            return
        self._name = name
        parts.append(CallStart(self._index, name))
        self._release()

    def _release(self) -> None:
        if self.is_named and self._waiting is not None:
            self._new.append(self._waiting)
            self._waiting = None


def _read(text: str) -> str | None:
    """The string that `text` is in JSON; None if it is something else."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
