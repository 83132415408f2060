"""Headers of a request that hold a name: what a value can be, and how often a header may come."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from app.errors import InvalidRequestError

SESSION_HEADER = "x-session-id"

MAX_NAME_CHARS = 256

# Visible ASCII: what every proxy passes on as it is. A comma may be two headers that a proxy made one.
_NAME = re.compile(rf"[!-+\--~]{{1,{MAX_NAME_CHARS}}}")


def name_in(headers: Headers, header: str, *, code: str, required: bool) -> str | None:
    """The name in `header`, as it was sent: "a" and "A" are two. None if it isn't there and needn't be.

    Raises:
        InvalidRequestError: with this `code`: the header is missing or comes more than once, or its value is
            none that is allowed. The value may be secret, so it isn't shown.
    """
    values = headers.getlist(header)
    if not values and not required:
        return None
    if len(values) == 1 and _NAME.fullmatch(values[0]):
        return values[0]
    given = f"{len(values)} headers" if len(values) != 1 else f"{len(values[0])} characters"
    allowed = f"one header of 1 to {MAX_NAME_CHARS} visible ASCII characters without commas"
    message = f"{header}: {given}; {allowed} is {'needed' if required else 'allowed'}"
    raise InvalidRequestError(message, param=header, code=code)


def named_session(headers: Headers) -> str | None:
    """The session that the client names, if it does.

    Raises:
        InvalidRequestError: the header comes more than once, or its value is none that is allowed.
    """
    return name_in(headers, SESSION_HEADER, code="invalid_session", required=False)
