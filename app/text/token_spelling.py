"""A single token's spelling: the bytes that it adds to a text, and how they are written for a reader."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenSpelling:
    """One token.

    Attributes:
        data: the bytes it adds to the text in UTF-8, possibly part of a character; none for special tokens.
        name: the same as text, with bytes that are no whole character as `\\xf0`; a special token's own name.
    """

    data: bytes
    name: str

    @classmethod
    def of_text(cls, data: bytes) -> TokenSpelling:
        """The spelling of a token that adds `data`."""
        return cls(data, data.decode(errors="backslashreplace"))


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level entry, in which a character stands for each byte (GPT-2's alphabet)."""
    return b"".join(_ALPHABET.get(character) or character.encode() for character in token)


def byte_fallback_bytes(token: str) -> bytes:
    """The bytes of an entry in which ▁ stands for a space, and <0x0A> for a byte that no other entry has."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, bytes]:
    """Printable bytes stand for themselves, the others are numbered from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    shown = {chr(byte): bytes([byte]) for byte in printable}
    return shown | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()
