"""Keeps a model from writing white space between JSON's tokens until its output reaches its longest length.

llguidance bounds it by a pattern since 1.9 only; before, what matches the pattern may follow itself. So it is
counted here, the same with every version.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_WHITE_SPACE = 32  # characters in one place
_WHITE_SPACE = b" \n\r\t"
_QUOTE, _BACKSLASH = b'"\\'


class WhiteSpaceTokens:
    """How much white space each token of a vocabulary begins with."""

    def __init__(self, spellings: Sequence[bytes]) -> None:
        """`spellings`: each token's bytes, by its id."""
        self.spellings = spellings
        self._leading = np.array([len(each) - len(each.lstrip(_WHITE_SPACE)) for each in spellings])
        self._longest = int(self._leading.max(initial=0))

    def without_longer(self, mask: bytes, room: int) -> bytes:
        """`mask`, one byte per token, with 0 for tokens that begin with more than `room` characters of it."""
        if self._longest <= room:
            return mask
        allowed = np.frombuffer(mask, np.uint8)
        return np.where(self._leading[: len(allowed)] > room, np.uint8(0), allowed).tobytes()


class JsonWhiteSpace:
    """Where one JSON text stands: in a string, or after how much white space."""

    def __init__(self, tokens: WhiteSpaceTokens) -> None:
        self._tokens = tokens
        self._in_string = self._escaped = False
        self._run = 0

    def accept(self, token_id: int) -> None:
        """Take the text's next token."""
        for byte in self._tokens.spellings[token_id]:
            if self._in_string:
                self._in_string = self._escaped or byte != _QUOTE
                self._escaped = not self._escaped and byte == _BACKSLASH
            else:
                self._in_string = byte == _QUOTE
                self._run = self._run + 1 if byte in _WHITE_SPACE else 0

    def allowed_tokens(self, mask: bytes) -> bytes:
        """`mask`, one byte per token, with 0 for those that would make the white space here too long."""
        return mask if self._in_string else self._tokens.without_longer(mask, MAX_WHITE_SPACE - self._run)
