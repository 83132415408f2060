"""Which tenant a request belongs to: the header by which a trusted gateway says so."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from app.errors import InvalidRequestError

MAX_TENANT_CHARS = 256

# Visible ASCII: what every proxy passes on as it is. A comma may be two headers that a proxy made one.
_TENANT = re.compile(rf"[!-+\--~]{{1,{MAX_TENANT_CHARS}}}")


def named_tenant(headers: Headers, header: str | None) -> str | None:
    """The tenant that `header` names, as it was sent: "a" and "A" are two. None where tenants have no header.

    Raises:
        InvalidRequestError: the header isn't there exactly once, or its value is none that is allowed.
    """
    if header is None:
        return None
    values = headers.getlist(header)
    if len(values) == 1 and _TENANT.fullmatch(values[0]):
        return values[0]
    # The value is part of a salt, so it isn't shown.
    given = f"{len(values)} headers" if len(values) != 1 else f"{len(values[0])} characters"
    allowed = f"one header of 1 to {MAX_TENANT_CHARS} visible ASCII characters without commas is needed"
    raise InvalidRequestError(f"{header}: {given}; {allowed}", param=header, code="invalid_tenant")
