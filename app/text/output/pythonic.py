"""Calls as Llama 3.2 and 4 can write them: the output is a list of Python calls, `[weather(city="Paris")]`.

`<|python_start|>` and `<|python_end|>` may stand around it. Any other output is text, also a list that holds
anything but calls of the tools with literal keyword arguments. The list is passed on when it is whole.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection
from typing import Any

from app.text.output.parts import CallArguments, CallStart, Part, Text, num_begun

START, END = "<|python_start|>", "<|python_end|>"
_BEGINNING = re.compile(r"\[\s*(?P<name>[A-Za-z_][\w.-]*)?\s*(?P<call>\()?")
_CONSTANTS = {"true": True, "false": False, "null": None}


class PythonicParser:
    """See `OutputParser`. `names`: those of the tools."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._state = "start"
        self._held = ""
        self._pieces: list[str] = []
        self._list = _ListEnd()
        self._has_begun_call = False
        self._num_calls = 0

    def push(self, text: str) -> list[Part]:
        """See `OutputParser`."""
        parts: list[Part] = []
        if self._state == "start":
            text = self._start(text)
        if self._state == "list" and text:
            text = self._take_list(text, parts)
        if self._state == "between":
            text = self._between(text)
        if self._state == "text" and text:
            parts.append(Text(text))
        return parts

    def _start(self, text: str) -> str:
        """What follows the marks and white space at the beginning; nothing while that isn't known."""
        self._held += text
        bare = self._held.lstrip()
        if num_begun(bare, START) == len(bare):
            return ""
        bare = bare.removeprefix(START).lstrip()
        if not bare:
            return ""
        held, self._held = self._held, ""
        if bare.startswith("["):
            self._state = "list"
            return bare
        self._state = "text"
        return held.replace(START, "", 1)

    def _take_list(self, text: str, parts: list[Part]) -> str:
        """What follows the list; all of it if it isn't one of calls."""
        self._pieces.append(text)
        end = self._list.after(text)
        if end is None and self._may_be_calls():
            return ""
        held = "".join(self._pieces)
        self._pieces.clear()
        calls = [] if end is None else _calls(held[:end], self._names)
        parts += calls
        self._num_calls = len(calls)
        self._state = "between" if calls else "text"
        return held[end:] if calls else held

    def _may_be_calls(self) -> bool:
        """Whether the list, which hasn't ended, has begun with a call of a tool, or still can."""
        if self._has_begun_call:
            return True
        held = "".join(self._pieces)
        match = _BEGINNING.match(held)
        if match is None:
            return False
        self._has_begun_call = match["call"] is not None and match["name"] in self._names
        return self._has_begun_call or (match["call"] is None and match.end() == len(held))

    def _between(self, text: str) -> str:
        """What follows the end mark, if there is one."""
        self._held = (self._held + text).lstrip()
        if num_begun(self._held, END) == len(self._held):
            return ""
        rest, self._held, self._state = self._held.removeprefix(END).lstrip(), "", "text"
        return rest

    def flush(self) -> list[Part]:
        """See `OutputParser`."""
        held, self._held = self._held.replace(START, "", 1) + "".join(self._pieces), ""
        self._pieces.clear()
        held = held if held.strip() or not self._num_calls else ""
        return [Text(held)] if held else []


class _ListEnd:
    """Finds where the list ends with which a text begins, which comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""
        self._escaped = False
        self._size = 0

    def after(self, text: str) -> int | None:
        """How many characters of the whole text the list has; None while it hasn't ended."""
        for character in text:
            self._size += 1
            if self._quote:
                self._quote = self._quote if self._escaped or character != self._quote else ""
                self._escaped = not self._escaped and character == "\\"
            elif character in "\"'":
                self._quote = character
            elif character in "([{":
                self._depth += 1
            elif character in ")]}":
                self._depth -= 1
                if self._depth == 0:
                    return self._size
        return None


def _calls(text: str, names: Collection[str]) -> list[Part]:
    """The calls in a list of them; none if it holds anything else."""
    try:
        tree = _JsonNames().visit(ast.parse(text, mode="eval").body)
        calls = [_read_call(each) for each in tree.elts]
        written = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    # Python's parser and `literal_eval` have many ways to refuse a text.
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        return []
    if any(name not in names for name, _ in written):
        return []
    return [
        part
        for index, (name, arguments) in enumerate(written)
        for part in (CallStart(index, name), CallArguments(index, arguments))
    ]


def _read_call(node: Any) -> tuple[str, dict[str, Any]]:
    """Raises `ValueError` for anything but a call with literal keyword arguments."""
    if not isinstance(node, ast.Call) or node.args or any(each.arg is None for each in node.keywords):
        raise ValueError
    return ast.unparse(node.func), {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}


class _JsonNames(ast.NodeTransformer):
    """JSON's names for true, false and null are literals too."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A constant, if it is one of these."""
        is_constant = node.id in _CONSTANTS
        return ast.copy_location(ast.Constant(_CONSTANTS[node.id]), node) if is_constant else node
