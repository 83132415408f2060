"""Lines of system prompts that are left out of the prompt, because they are other ones with every request.

Such a line is a client's message to its vendor, not to the model; in front of a conversation it would cost
all of its cached prefix. Patterns are plain text with `*` for any characters. Unlike regular expressions they
have nothing to go back into: a line is looked through once, whatever is in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NOT_NAME = re.compile(r"[^A-Za-z0-9]+")


class LinePattern:
    """A pattern that a whole line must match.

    Attributes:
        name: the pattern as the answer's header tells it, in letters, digits and underscores.
        needed: a text that every matching line has.
    """

    def __init__(self, pattern: str) -> None:
        """`pattern`: text, of which `*` stands for any characters, also none."""
        self._pieces = pattern.split("*")
        self.needed = max(self._pieces, key=len)
        self.name = _NOT_NAME.sub("_", pattern).strip("_")

    def matches(self, line: str) -> bool:
        """Whether it is `line`, which has no line break."""
        first, *others = self._pieces
        if not others:
            return line == first
        *middle, last = others
        at, end = len(first), len(line) - len(last)
        if end < at or not (line.startswith(first) and line.endswith(last)):
            return False
        # The leftmost place of each piece leaves the most room for the next one.
        for piece in middle:
            found = line.find(piece, at, end)
            if found < 0:
                return False
            at = found + len(piece)
        return True


class DroppedLines:
    """What is left out of a text.

    Args:
        patterns: of the lines; none leaves every text as it is.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._patterns = [LinePattern(pattern) for pattern in patterns]

    def drop(self, text: str) -> tuple[str, tuple[str, ...]]:
        """`text` without these lines and their line breaks, and the names of the patterns that they match."""
        patterns = [pattern for pattern in self._patterns if pattern.needed in text]
        if not patterns:
            return text, ()
        kept: list[str] = []
        names: dict[str, None] = {}
        for line in text.split("\n"):
            bare = line.removesuffix("\r")
            match = next((pattern for pattern in patterns if pattern.matches(bare)), None)
            if match is None:
                kept.append(line)
            else:
                names[match.name] = None
        return "\n".join(kept), tuple(names)
