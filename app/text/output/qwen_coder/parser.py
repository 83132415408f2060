"""Finds the calls in an output; see the room's description for how they are written."""

from __future__ import annotations

import json

from app.text.output.parts import CallArguments, CallStart, Part, Text, TextBeforeMark, num_begun
from app.text.output.qwen_coder.values import Kinds, ValueKind, as_json

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"


class QwenCoderParser:
    """See `OutputParser`. What stands between the marks and is no call is text.

    The text of a string is passed on as it comes, without the line's ends after the mark before it and before
    the mark behind it.

    Args:
        kinds: how parameters are written.
    """

    def __init__(self, kinds: Kinds) -> None:
        self._kinds = kinds
        self._text = TextBeforeMark(OPEN)
        self._state = "text"
        self._held = ""
        self._num_calls = 0
        self._name = ""
        self._has_parameters = False
        self._kind: ValueKind = "text"
        self._is_open = False
        """Whether a string has begun."""

    def push(self, text: str) -> list[Part]:
        """See `OutputParser`."""
        parts: list[Part] = []
        self._held += text
        while self._advance(parts):
            pass
        return parts

    def _advance(self, parts: list[Part]) -> bool:
        """Take what is certain of what is held; whether more may be."""
        match self._state:
            case "text":
                return self._say(parts)
            case "open":
                return self._begin(parts)
            case "call":
                return self._go_on(parts)
            case "value":
                return self._take_value(parts)
        return self._close()

    def _say(self, parts: list[Part]) -> bool:
        text, self._held = self._held, ""
        after = self._text.push(text, parts) if text else None
        if after is None:
            return False
        self._held, self._state = after, "open"
        return True

    def _begin(self, parts: list[Part]) -> bool:
        bare = self._held.lstrip()
        name, found, after = bare.removeprefix(FUNCTION).partition(">")
        if not bare.startswith(FUNCTION) or "\n" in name:
            if num_begun(bare, FUNCTION) == len(bare):
                return False
            parts.append(Text(OPEN))
            self._state = "text"
            return True
        if not found:
            return False
        self._name, self._held, self._state, self._has_parameters = name.strip(), after, "call", False
        parts.append(CallStart(self._num_calls, self._name))
        return True

    def _go_on(self, parts: list[Part]) -> bool:
        """The next parameter, or the end of the call: its mark, or anything else that is none of it."""
        bare = self._held.lstrip()
        if any(num_begun(bare, mark) == len(bare) for mark in (PARAMETER, END_FUNCTION)):
            return False
        if not bare.startswith(PARAMETER):
            self._say_arguments("}" if self._has_parameters else "{}", parts)
            self._held, self._state = bare.removeprefix(END_FUNCTION), "close"
            self._num_calls += 1
            return True
        name, found, after = bare.removeprefix(PARAMETER).partition(">")
        if not found:
            return False
        self._say_arguments(", " if self._has_parameters else "{", parts)
        self._say_arguments(f"{json.dumps(name.strip(), ensure_ascii=False)}: ", parts)
        self._kind = self._kinds.get((self._name, name.strip()), "text")
        self._held, self._state, self._has_parameters, self._is_open = after, "value", True, False
        return True

    def _take_value(self, parts: list[Part]) -> bool:
        if not self._is_open and not self._open_value(parts):
            return False
        value, found, after = self._held.partition(END_PARAMETER)
        if found:
            self._end_value(value.removesuffix("\n"), parts)
            self._held, self._state = after, "call"
            return True
        if self._kind == "text":
            num_held = max(num_begun(self._held, mark + END_PARAMETER) for mark in ("\n", ""))
            size = len(self._held) - num_held
            self._say_arguments(_escaped(self._held[:size]), parts)
            self._held = self._held[size:]
        return False

    def _open_value(self, parts: list[Part]) -> bool:
        if not self._held:
            return False
        self._held = self._held.removeprefix("\n")
        self._is_open = True
        self._say_arguments('"' if self._kind == "text" else "", parts)
        return True

    def _end_value(self, value: str, parts: list[Part]) -> None:
        is_text = self._kind == "text"
        self._say_arguments(f'{_escaped(value)}"' if is_text else as_json(value, self._kind), parts)

    def _close(self) -> bool:
        bare = self._held.lstrip()
        if num_begun(bare, CLOSE) == len(bare):
            return False
        self._held, self._state = bare.removeprefix(CLOSE), "text"
        return True

    def _say_arguments(self, text: str, parts: list[Part]) -> None:
        if text:
            parts.append(CallArguments(self._num_calls, text))

    def flush(self) -> list[Part]:
        """See `OutputParser`."""
        parts: list[Part] = []
        held, self._held = self._held, ""
        if self._state == "value":
            is_text = self._kind == "text"
            self._say_arguments(_escaped(held) if is_text and self._is_open else held.strip(), parts)
            return parts
        if self._state == "call":
            return parts
        held = {"open": OPEN + held, "close": held}.get(self._state, held + self._text.flush())
        # After a call only white space is left out; a beginning of a mark is text.
        held = held if held.strip() or not self._num_calls else ""
        return [Text(held)] if held else []


def _escaped(text: str) -> str:
    """`text` inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
