"""What a single token is: the bytes that it adds to a text, and how it is written down."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenSpelling:
    """One token.

    Attributes:
        data: what it adds to the text in UTF-8: maybe part of a character; nothing for special tokens.
        name: the same as text, bytes that are no whole character as `\\xf0`; a special token's own name.
    """

    data: bytes
    name: str

    @classmethod
    def of_text(cls, data: bytes) -> TokenSpelling:
        """Of a token that is `data`."""
        return cls(data, data.decode(errors="backslashreplace"))


def byte_level_bytes(token: str) -> bytes:
    """Of a byte-level vocabulary's entry, in which a character stands for each byte (GPT-2's alphabet)."""
    return b"".join(_ALPHABET.get(character) or character.encode() for character in token)


def byte_fallback_bytes(token: str) -> bytes:
    """Of a vocabulary's entry in which ▁ stands for a space, and <0x0A> for a byte that no entry has."""
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
