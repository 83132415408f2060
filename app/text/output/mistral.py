"""Calls as Mistral's models write them, after a text:

[TOOL_CALLS][{"name": …, "arguments": {…}}, …]      a list, up to Mistral Small 3.1
[TOOL_CALLS]name[ARGS]{…}[TOOL_CALLS]name[ARGS]{…}  one by one, since; `[CALL_ID]…` may follow the name
"""

from __future__ import annotations

from app.text.output.json_call import JsonCall, JsonNesting
from app.text.output.parts import CallArguments, CallStart, Part, Text, TextBeforeMark

OPEN, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


class MistralParser:
    """See `OutputParser`."""

    def __init__(self) -> None:
        self._text = TextBeforeMark(OPEN)
        self._state = "text"
        self._num_calls = 0
        self._call: JsonCall | None = None
        self._name = ""
        self._nesting = JsonNesting()

    def push(self, text: str) -> list[Part]:
        """See `OutputParser`."""
        parts: list[Part] = []
        steps = {"text": self._say, "open": self._open, "list": self._list, "name": self._read_name}
        while text:
            step = steps.get(self._state, self._arguments)
            text = step(text, parts)
        return parts

    def _say(self, text: str, parts: list[Part]) -> str:
        after = self._text.push(text, parts)
        if after is None:
            return ""
        self._state = "open"
        return after

    def _open(self, text: str, parts: list[Part]) -> str:
        text = text.lstrip()
        if text:
            self._state = "list" if text[0] in "[{" else "name"
        return text

    def _list(self, text: str, parts: list[Part]) -> str:
        if self._call is None:
            text = text.lstrip(" \n\r\t,[")
            if text.startswith("{"):
                self._call = JsonCall(self._num_calls)
            elif text:
                self._state = "text"
                return text.removeprefix("]")
            return text
        new, rest = self._call.push(text)
        parts += new
        if self._call.is_broken:
            parts.append(Text(self._call.raw))
        if self._call.is_done or self._call.is_broken:
            self._num_calls += self._call.is_named
            self._call = None
        return rest

    def _read_name(self, text: str, parts: list[Part]) -> str:
        before, brace, after = text.partition("{")
        self._name += before
        if not brace:
            return ""
        name = self._name.removesuffix(ARGS).partition(CALL_ID)[0].strip()
        parts.append(CallStart(self._num_calls, name))
        self._name, self._state, self._nesting = "", "arguments", JsonNesting()
        return brace + after

    def _arguments(self, text: str, parts: list[Part]) -> str:
        size = len(text)
        for place, character in enumerate(text):
            self._nesting.take(character)
            if self._nesting.depth == 0:
                size = place + 1
                self._state = "text"
                break
        parts.append(CallArguments(self._num_calls, text[:size]))
        self._num_calls += self._state == "text"
        return text[size:]

    def flush(self) -> list[Part]:
        """See `OutputParser`."""
        held = "" if self._call is None or self._call.is_named else self._call.raw
        held += self._name + self._text.flush()
        held = held if held.strip() or not self._num_calls else ""
        return [Text(held)] if held else []
