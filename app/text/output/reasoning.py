"""Splits what a model thinks, `<think>…</think>` at the beginning of its output, from what it says."""

from __future__ import annotations

from app.text.output.parts import OutputParser, Part, Thought, num_begun

OPEN, CLOSE = "<think>", "</think>"


class ThoughtParser:
    """See `OutputParser`.

    Args:
        rest: parses what follows the thoughts.
        is_open: whether the prompt ends in the mark that opens them.
    """

    def __init__(self, rest: OutputParser, *, is_open: bool) -> None:
        self._rest = rest
        self._state = "thought" if is_open else "start"
        self._held = ""

    def push(self, text: str) -> list[Part]:
        """See `OutputParser`."""
        if self._state == "said":
            return self._rest.push(text)
        self._held += text
        parts: list[Part] = []
        if self._state == "start":
            self._start()
        if self._state == "thought":
            self._think(parts)
        if self._state == "between":
            self._held = self._held.lstrip()
            self._state = "said" if self._held else "between"
        if self._state == "said" and self._held:
            said, self._held = self._held, ""
            parts += self._rest.push(said)
        return parts

    def _start(self) -> None:
        bare = self._held.lstrip()
        if bare.startswith(OPEN):
            self._state, self._held = "thought", bare.removeprefix(OPEN)
        elif num_begun(bare, OPEN) < len(bare):
            self._state = "said"

    def _think(self, parts: list[Part]) -> None:
        thought, found, after = self._held.partition(CLOSE)
        if found:
            self._state, self._held = "between", after
        else:
            size = len(thought) - num_begun(thought, CLOSE)
            thought, self._held = thought[:size], thought[size:]
        if thought:
            parts.append(Thought(thought))

    def flush(self) -> list[Part]:
        """See `OutputParser`."""
        held, self._held = self._held, ""
        if self._state == "thought":
            return [*([Thought(held)] if held else []), *self._rest.flush()]
        return [*(self._rest.push(held) if held else []), *self._rest.flush()]
