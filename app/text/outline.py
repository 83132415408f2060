"""A prompt's content as hashes of its pieces, which name equal content wherever in a prompt it is.

    text     │ <|im_start|>system\nThe time is 12:01:33.\n │ You are …\n │ <|im_end|>\n<|im_start|>user\nHi │
    message  │ 0                                           │ 0           │ 1

A piece is a line of the prompt's text, several short ones together, or a sentence or so of a long one; it
ends where a message's content does, so what the template writes before a message belongs to its first piece.
A prompt that was given as token ids has its blocks as pieces. Hashes depend on the cache salt: equal content
of two tenants has different names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from struct import Struct

import msgspec
import numpy as np
import numpy.typing as npt

from app.hashing import token_bytes

MIN_PIECE_CHARS = 32
"""Shorter lines are joined with the next ones: they are too common to say where they are from."""
LONG_PIECE_CHARS = 128
"""A line that goes on for longer is cut at the next end of a sentence, or of an object of JSON."""
_CUT = re.compile(r"[.;!?] |\}, ?")
MAX_TOKEN_BYTES = 255
"""A token with more bytes of text counts as one with so many."""
_INT64 = Struct(">q")


class Span(msgspec.Struct, frozen=True):
    """Where a message's content is in a prompt's text, in characters."""

    role: str
    start: int
    end: int


class Outline(msgspec.Struct, frozen=True):
    """The pieces of a prompt, in order.

    Attributes:
        hashes: their names, signed int64.
        ends: for each, how many of the prompt's tokens begin before its end.
        messages: for each, the message that it is of; as many as there are messages for what follows them.
        lines: for each, the line of the message's content that it begins in, from 0; below that by the lines
            that the template has before it.
        roles: the messages' roles; none if the prompt isn't a chat.
        texts: their texts; none unless texts are allowed.
        token_sizes: bytes of text of each token, up to `MAX_TOKEN_BYTES`; none unless texts are allowed.
    """

    hashes: list[int]
    ends: list[int]
    messages: list[int] = []
    lines: list[int] = []
    roles: list[str] = []
    texts: list[str] = []
    token_sizes: bytes = b""


def outline_of_tokens(token_ids: Sequence[int], block_size: int, seed: bytes) -> Outline:
    """A prompt of token ids: its full blocks. `seed` is the salt's, see `app.hashing.seed`."""
    data, width = token_bytes(token_ids), 4 * block_size
    starts = range(0, len(data) - width + 1, width)
    hashes = [_name(data[start : start + width], seed) for start in starts]
    return Outline(hashes, [(start + width) // 4 for start in starts])


def outline_of_text(
    text: str, spans: Sequence[Span], sizes: npt.NDArray[np.int64], seed: bytes, *, with_texts: bool
) -> Outline:
    """A prompt of text.

    Args:
        text: all of it, as it was tokenized.
        spans: of its messages, in order; none for a text that isn't a chat.
        sizes: bytes of text of each token.
        seed: the salt's, see `app.hashing.seed`.
        with_texts: whether the pieces' texts may be known to the receiver of the outline.
    """
    pieces, messages, lines = [], [], []
    for start, end, message, line in _pieces(text, spans):
        pieces.append(text[start:end])
        messages.append(message)
        lines.append(line)
    encoded = [piece.encode(errors="replace") for piece in pieces]
    byte_ends = np.cumsum([len(each) for each in encoded])
    return Outline(
        hashes=[_name(each, seed) for each in encoded],
        ends=_token_ends(sizes, byte_ends),
        messages=messages if spans else [],
        lines=lines,
        roles=[span.role for span in spans],
        texts=pieces if with_texts else [],
        token_sizes=sizes.clip(0, MAX_TOKEN_BYTES).astype(np.uint8).tobytes() if with_texts else b"",
    )


def _token_ends(sizes: npt.NDArray[np.int64], byte_ends: npt.NDArray[np.int64]) -> list[int]:
    """For each piece's end, how many tokens begin before it.

    Tokenizers that change the text, by a prefix or by normalizing it, have other sizes in all: then places
    are moved in proportion.
    """
    starts = np.cumsum(sizes) - sizes
    total, expected = int(sizes.sum()), int(byte_ends[-1]) if len(byte_ends) else 0
    scaled = byte_ends * (total / expected) if total != expected and expected else byte_ends
    ends: list[int] = starts.searchsorted(scaled, side="left").tolist()
    return [*ends[:-1], len(sizes)] if ends else []


def _pieces(text: str, spans: Sequence[Span]) -> Iterator[tuple[int, int, int, int]]:
    """Start, end, message and line of each piece: together all of the text."""
    start = 0
    for message, span in enumerate([*spans, None]):
        content = start if span is None else span.start
        end = len(text) if span is None else span.end
        line = -text.count("\n", start, content)
        for piece_end in _cuts(text, start, end):
            yield start, piece_end, message, line
            line += text.count("\n", start, piece_end)
            start = piece_end


def _cuts(text: str, start: int, end: int) -> Iterator[int]:
    """Ends of the pieces of `text[start:end]`; none if that is empty."""
    while start < end:
        line_end = text.find("\n", start + MIN_PIECE_CHARS - 1, end) + 1 or end
        cut = _CUT.search(text, start + LONG_PIECE_CHARS, line_end)
        start = cut.end() if cut is not None else line_end
        yield start


def _name(content: bytes, seed: bytes) -> int:
    digest = hashlib.blake2b(content, digest_size=8, key=seed).digest()
    name: int
    (name,) = _INT64.unpack(digest)
    return name
