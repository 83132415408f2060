"""Calls as Llama 3.x writes them: the output is `{"name": …, "parameters": {…}}`, more of them after `; `.

`<|python_tag|>` may stand before. Any other output is text, JSON too: a call has the name of a tool.
"""

from __future__ import annotations

from collections.abc import Collection

from app.text.output.json_call import JsonCall
from app.text.output.parts import Part, Text, num_begun

TAG = "<|python_tag|>"


class LlamaParser:
    """See `OutputParser`. `names`: those of the tools."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = self._before = ""
        self._call: JsonCall | None = None
        self._is_text = False
        self._num_calls = 0

    def push(self, text: str) -> list[Part]:
        """See `OutputParser`."""
        parts: list[Part] = []
        while text:
            if self._is_text:
                parts.append(Text(text))
                text = ""
            elif self._call is not None:
                text = self._continue_call(self._call, text, parts)
            else:
                text = self._begin(text, parts)
        return parts

    def _begin(self, text: str, parts: list[Part]) -> str:
        self._held += text
        bare = self._held.lstrip("; \n\r\t" if self._num_calls else None)
        if not bare or num_begun(bare, TAG) == len(bare):
            return ""
        bare = bare.removeprefix(TAG).lstrip()
        if not bare:
            return ""
        if bare.startswith("{"):
            self._call = JsonCall(self._num_calls, self._names)
            self._before = self._held[: len(self._held) - len(bare)]
            self._held = ""
            return bare
        shown, self._held, self._is_text = self._held.replace(TAG, "", 1), "", True
        return shown

    def _continue_call(self, call: JsonCall, text: str, parts: list[Part]) -> str:
        new, rest = call.push(text)
        parts += new
        if call.is_broken:
            self._is_text = True
            parts.append(Text(self._before.replace(TAG, "", 1) + call.raw))
        if call.is_done or call.is_broken:
            self._num_calls += call.is_named
            self._call = None
        return rest

    def flush(self) -> list[Part]:
        """See `OutputParser`."""
        call, self._call = self._call, None
        held = self._before + call.raw if call is not None and not call.is_named else self._held
        self._held = ""
        held = held.replace(TAG, "", 1)
        held = held if held.strip("; \n\r\t") or not self._num_calls else ""
        return [Text(held)] if held else []
