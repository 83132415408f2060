"""Calls as Hermes and Qwen write them, after text: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

from app.text.output.json_call import JsonCall
from app.text.output.parts import Part, Text, TextBeforeMark, num_begun

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser:
    """See `OutputParser`. What stands between the marks and is no call is text."""

    def __init__(self) -> None:
        self._text = TextBeforeMark(OPEN)
        self._call: JsonCall | None = None
        self._is_closing = False
        self._held = ""
        self._num_calls = 0

    def push(self, text: str) -> list[Part]:
        """See `OutputParser`."""
        parts: list[Part] = []
        while text:
            if self._is_closing:
                text = self._close(text)
            elif self._call is not None:
                text = self._continue_call(self._call, text, parts)
            else:
                text = self._say(text, parts)
        return parts

    def _say(self, text: str, parts: list[Part]) -> str:
        after = self._text.push(text, parts)
        if after is None:
            return ""
        self._call = JsonCall(self._num_calls)
        return after

    def _continue_call(self, call: JsonCall, text: str, parts: list[Part]) -> str:
        if not call.raw:
            text = text.lstrip()
            if text and not text.startswith("{"):
                self._call = None
                parts.append(Text(OPEN))
                return text
        new, rest = call.push(text)
        parts += new
        if call.is_broken:
            self._call = None
            parts.append(Text(OPEN + call.raw))
        elif call.is_done:
            self._call, self._is_closing = None, True
            self._num_calls += 1
        return rest

    def _close(self, text: str) -> str:
        self._held = (self._held + text).lstrip()
        if self._held.startswith(CLOSE):
            rest = self._held.removeprefix(CLOSE)
        elif num_begun(self._held, CLOSE) == len(self._held):
            return ""
        else:
            rest = self._held
        self._held, self._is_closing = "", False
        return rest

    def flush(self) -> list[Part]:
        """See `OutputParser`."""
        call, self._call = self._call, None
        held = OPEN + call.raw if call is not None and not call.is_named else ""
        held += self._text.flush()
        # After a call only white space is left out; a beginning of a mark is text.
        held = held if held.strip() or not self._num_calls else ""
        return [Text(held)] if held else []
