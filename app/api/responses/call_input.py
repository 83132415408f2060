"""A custom tool's input out of its call's arguments, `{"input": "…"}`, while they are written."""

from __future__ import annotations

import json
import re

_BEGINNING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_MAY_BEGIN = re.compile(r'\s*(\{\s*("(i(n(p(u(t("\s*(:\s*)?)?)?)?)?)?)?)?)?')
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class CallInput:
    """Takes the arguments in pieces. Those of another form are the input themselves, at their end."""

    def __init__(self) -> None:
        self._all = ""
        self._held = ""
        self._state = "before"
        self._high: int | None = None
        """Half of a character that JSON writes as two escapes."""

    def push(self, text: str) -> str:
        """What is certain of the input with this piece."""
        self._all += text
        self._held += text
        if self._state == "before":
            begun = _BEGINNING.match(self._held)
            if begun is not None:
                self._state, self._held = "within", self._held[begun.end() :]
            elif _MAY_BEGIN.fullmatch(self._held) is None:
                self._state = "other"
        return self._read() if self._state == "within" else ""

    def _read(self) -> str:
        shown = ""
        while self._held and self._state == "within":
            if self._held[0] == '"':
                shown += self._lone()
                self._state = "after"
            elif self._held[0] != "\\":
                plain = re.match(r'[^"\\]+', self._held)
                assert plain is not None
                shown += self._lone() + plain[0]
                self._held = self._held[plain.end() :]
            else:
                size = 6 if self._held[1:2] == "u" else 2
                if len(self._held) < size:
                    break
                escape, self._held = self._held[:size], self._held[size:]
                shown += self._escaped(escape)
        return shown

    def _escaped(self, escape: str) -> str:
        if len(escape) == 2:
            return self._lone() + _SIMPLE.get(escape[1], escape[1])
        try:
            code = int(escape[2:], 16)
        except ValueError:
            return self._lone() + escape
        if self._high is not None and 0xDC00 <= code < 0xE000:
            high, self._high = self._high, None
            return chr(0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00))
        before = self._lone()
        if 0xD800 <= code < 0xDC00:
            self._high = code
            return before
        return before + ("\N{REPLACEMENT CHARACTER}" if 0xDC00 <= code < 0xE000 else chr(code))

    def _lone(self) -> str:
        """What stands for half of a character whose other half doesn't follow."""
        high, self._high = self._high, None
        return "" if high is None else "\N{REPLACEMENT CHARACTER}"

    def flush(self) -> str:
        """The rest. The arguments are over."""
        if self._state in ("within", "after"):
            return self._lone()
        return _only_text(self._all)


def _only_text(arguments: str) -> str:
    """The input of arguments that begin in another way."""
    try:
        values = json.loads(arguments)
    except ValueError:
        return arguments
    text = values.get("input") if isinstance(values, dict) else None
    return text if isinstance(text, str) else arguments
