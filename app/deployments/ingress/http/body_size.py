"""Refuses a body of too many values before it becomes objects.

Parsing and validating hold Python's lock: a second or two for a body of millions of values, in which an
ingress answers nobody else. To count them takes milliseconds, and lets others run in between.
"""

from __future__ import annotations

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
    # Each of them, but for the first, comes after one of these; strings have some too.
    if _count(body) > most and (num_values := _count(_without_strings(body))) > most:
        message = f"the body has {num_values} JSON values; a prompt has at most {max_tokens} tokens here"
        raise PromptTooLongError(f"{message}, and all the rest at most {MORE_VALUES} values")


def _count(text: bytes) -> int:
    pieces = (text[start : start + PIECE] for start in range(0, len(text), PIECE))
    return sum(len(piece.translate(None, _NO_VALUES)) for piece in pieces)


def _without_strings(body: bytes) -> bytes:
    """What is outside of strings: every other part between quotes, but for those that are escaped."""
    bare: list[bytes] = []
    is_inside, rest = False, b""
    for start in range(0, len(body), PIECE):
        piece = rest + body[start : start + PIECE]
        rest = b""
        num_slashes = len(piece) - len(piece.rstrip(b"\\"))
        if num_slashes % 2:  # what it escapes is in the next piece
            piece, rest = piece[:-1], b"\\"
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        bare += parts[is_inside::2]
        is_inside ^= len(parts) % 2 == 0
    return b"".join(bare)
