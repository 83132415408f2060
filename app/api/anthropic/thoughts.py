"""Thoughts on their way to a client and back: as a text, or in the signature if the client doesn't want it.

    display       the client gets, and sends back
    summarized    {"thinking": "…", "signature": MARK}
    omitted       {"thinking": "", "signature": MARK + …}      the prompt has the thoughts again

Without them the next prompt would be another one than what the rank's cache holds. A client may read them in
the signature: they are left out to save its time, not to hide them.
"""

from __future__ import annotations

import base64
import binascii

from app.errors import InvalidRequestError

MARK = "kvbeacon."
"""How our signatures begin."""


def signature_of(thoughts: str, *, shown: bool) -> str:
    """The signature of thoughts, which has them unless they are `shown`."""
    return MARK if shown else MARK + base64.urlsafe_b64encode(thoughts.encode()).decode()


def is_foreign(thinking: str, signature: str) -> bool:
    """Whether there are no thoughts that this server can read."""
    return not thinking and not signature.startswith(MARK)


def thoughts_of(thinking: str, signature: str, path: str) -> str:
    """The thoughts of a block that a client sent back; none if they can't be read.

    Args:
        thinking: the block's text.
        signature: the block's.
        path: the signature's, for errors.

    Raises:
        InvalidRequestError: the signature begins as ours do, and isn't one.
    """
    if thinking or is_foreign(thinking, signature):
        return thinking
    try:
        return base64.b64decode(signature.removeprefix(MARK), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        message = f"{path}: not what this server sent; send a thinking block back as it came"
        raise InvalidRequestError(message, param=path) from None
