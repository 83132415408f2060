"""Refuses a body of too many values before it becomes objects.

Parsing and validating hold Python's lock: a second or two for a body of millions of values, in which an
ingress answers nobody else. To count them takes milliseconds, and lets others run in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from app.errors import PromptTooLongError

MORE_VALUES = 50_000
"""Values of a body beside those of a prompt of token ids: messages, tools, schemas, biases."""
PIECE = 2**16
"""Bytes that are looked at in one call, which is well below a millisecond's work."""
_VALUES = b"[{,"
_NO_VALUES = bytes(set(range(256)) - set(_VALUES))


def check_size(body: bytes, max_tokens: int) -> None:
    """Refuse JSON that has more values than a prompt of `max_tokens` token ids and `MORE_VALUES`.

    Raises:
        PromptTooLongError: it has.
    """
    most = max_tokens + MORE_VALUES
    # Each value, but for the first, comes after one of these; strings have some too.
    if _exceeds(_pieces(body), most) and _exceeds(_without_strings(body), most):
        message = f"the body has more than {most} JSON values; a prompt has at most {max_tokens} tokens here"
        raise PromptTooLongError(f"{message}, and all the rest at most {MORE_VALUES} values")


def _exceeds(pieces: Iterable[bytes], most: int) -> bool:
    """Whether they have more of `_VALUES`; no more of them is looked at than that needs."""
    counts = accumulate(len(piece.translate(None, _NO_VALUES)) for piece in pieces)
    return any(count > most for count in counts)


def _pieces(body: bytes) -> Iterator[bytes]:
    return (body[start : start + PIECE] for start in range(0, len(body), PIECE))


def _without_strings(body: bytes) -> Iterator[bytes]:
    """What is outside of strings: every other part between quotes, but for those that are escaped."""
    is_inside, rest = False, b""
    for piece in _pieces(body):
        piece = rest + piece
        num_slashes = len(piece) - len(piece.rstrip(b"\\"))
        # What the last of an odd number escapes is in the next piece.
        piece, rest = (piece[:-1], b"\\") if num_slashes % 2 else (piece, b"")
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[is_inside::2])
        is_inside ^= len(parts) % 2 == 0
