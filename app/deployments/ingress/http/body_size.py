"""Refuses a body of too many values before it becomes objects.

Parsing and validating hold Python's lock: a second or two for a body of millions of values, in which an
ingress answers no other request. To count them takes milliseconds, and lets others run in between.
"""

from __future__ import annotations

from collections.abc import Iterator

from app.errors import PromptTooLongError

MORE_VALUES = 50_000
"""Values of a body beside those of prompts of token ids: messages, tools, schemas, biases."""
PIECE = 2**16
"""Bytes that are looked at in one call, which is well below a millisecond's work."""
_MARKS = b"[{,"
_NO_MARKS = bytes(set(range(256)) - set(_MARKS))


def check_size(body: bytes, max_tokens: int) -> None:
    """Refuse JSON that has more values than its lists could hold as prompts of `max_tokens` token ids.

    Beside these there may be `MORE_VALUES`, and as many lists and objects. No more of the body is looked at
    than a refusal needs.

    Raises:
        PromptTooLongError: it has more.
    """
    if sum(len(_marks(piece)) for piece in _pieces(body)) <= MORE_VALUES:  # with those in strings
        return
    num_lists = num_objects = num_commas = 0
    for bare in _without_strings(body):
        marks = _marks(bare)
        num_lists += marks.count(b"[")
        num_objects += marks.count(b"{")
        num_commas += marks.count(b",")
        most = MORE_VALUES + max_tokens * num_lists
        if num_commas > most or num_lists + num_objects > MORE_VALUES:
            allowed = f"{max_tokens} in a list of token ids, which is the context, and {MORE_VALUES} more"
            raise PromptTooLongError(f"the body has too many JSON values; at most {allowed}")


def _marks(text: bytes) -> bytes:
    """All that values come after, but for the first."""
    return text.translate(None, _NO_MARKS)


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
