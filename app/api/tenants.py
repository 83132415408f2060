"""Which tenant a request belongs to: the header by which a trusted gateway says so."""

from __future__ import annotations

from starlette.datastructures import Headers

from app.api.headers import name_in


def named_tenant(headers: Headers, header: str | None) -> str | None:
    """The tenant that `header` names, as it was sent: "a" and "A" are two. None where tenants have no header.

    Raises:
        InvalidRequestError: the header isn't there exactly once, or its value is none that is allowed.
    """
    if header is None:
        return None
    # The value is part of a salt: no answer may show it.
    return name_in(headers, header, code="invalid_tenant", required=True)
