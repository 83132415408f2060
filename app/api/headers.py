"""Everything that a request says in its headers: key, tenant, session, pinned rank, time.

Kept in one place, so that every API reads them alike. A header of a tenant or a session holds a name.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from starlette.datastructures import Headers

from app.errors import InvalidRequestError, shown

SESSION_HEADER = "x-session-id"
RANK_HEADER = "X-Data-Parallel-Rank"
TIMEOUT_HEADER = "x-kvbeacon-timeout-s"
KEY_HEADER = "x-api-key"
ID_HEADER = "x-request-id"
MAX_ID_CHARS = 64

MAX_NAME_CHARS = 256

# Visible ASCII: what every proxy passes on as it is. A comma may be two headers that a proxy made one.
NAME = re.compile(rf"[!-+\--~]{{1,{MAX_NAME_CHARS}}}")
_RANK = re.compile(r"-?[0-9]{1,18}")
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9._-]")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def new_request_id(headers: Headers) -> str:
    """A request's name for routers and ranks, their logs and its answer: the header's, and eight digits.

    Clients may send one id twice, so it can't be the name by itself. Characters that a path, a log or a wire
    might take for something else become underscores, and long ids are cut.
    """
    given = _NOT_IN_ID.sub("_", headers.get(ID_HEADER, ""))[:MAX_ID_CHARS]
    own = uuid.uuid4().hex
    return f"{given}-{own[:8]}" if given else own


def given_keys(headers: Headers) -> list[str]:
    """Every key that the request has: `Authorization: Bearer KEY` as OpenAI's clients send it, `x-api-key` as
    Anthropic's do."""
    schemes = (value.strip().partition(" ") for value in headers.getlist("authorization"))
    bearers = [key.strip() for scheme, _, key in schemes if scheme.lower() == "bearer"]
    return bearers + [value.strip() for value in headers.getlist(KEY_HEADER)]


def given_timeout_s(headers: Headers) -> float | None:
    """The seconds that the request may take, if it says so.

    Raises:
        InvalidRequestError: the header is no positive number, or comes more than once.
    """
    values = headers.getlist(TIMEOUT_HEADER)
    if not values:
        return None
    if len(values) > 1 or not _SECONDS.fullmatch(values[0]) or not float(values[0]):
        given = f"{len(values)} headers" if len(values) > 1 else shown(values[0])
        message = f"{TIMEOUT_HEADER} = {given}; one number of seconds above 0 is allowed, such as 2.5"
        raise InvalidRequestError(message, param=TIMEOUT_HEADER)
    return float(values[0])


def named_tenant(headers: Headers, header: str | None) -> str | None:
    """The tenant that `header` names, by which a trusted gateway says to which tenant a request belongs.

    It is returned as it was sent: "a" and "A" are two. None where tenants have no header.

    Raises:
        InvalidRequestError: the header isn't there exactly once, or its value is none that is allowed.
    """
    if header is None:
        return None
    # The value is part of a salt: no answer may show it.
    return _name_in(headers, header, code="invalid_tenant", required=True)


def named_session(headers: Headers) -> str | None:
    """The session that the client names, if it does.

    Raises:
        InvalidRequestError: the header comes more than once, or its value is none that is allowed.
    """
    return _name_in(headers, SESSION_HEADER, code="invalid_session", required=False)


class PinnedRank(NamedTuple):
    """The only rank that a client allows, and the header or field that says so."""

    rank: int
    field: str


def pinned_rank(headers: Headers, body_fields: Mapping[str, int | None]) -> PinnedRank | None:
    """The only rank that the client allows: the header's, else that of the body; None if it names none.

    Which ranks there are, the routers know.

    Args:
        headers: the request's.
        body_fields: the body's fields that can name a rank, and their values; the first that has one counts.

    Raises:
        InvalidRequestError: the header isn't an integer, or comes more than once.
    """
    in_header = {RANK_HEADER: _rank_in(headers)}
    for field, rank in (in_header | dict(body_fields)).items():
        if rank is not None:
            return PinnedRank(rank, field)
    return None


def _rank_in(headers: Headers) -> int | None:
    values = headers.getlist(RANK_HEADER)
    if not values:
        return None
    if len(values) > 1:
        message = f"{RANK_HEADER}: {len(values)} headers; one is allowed"
        raise InvalidRequestError(message, param=RANK_HEADER)
    if not _RANK.fullmatch(values[0]):
        message = f"{RANK_HEADER} = {shown(values[0])}; an integer is needed"
        raise InvalidRequestError(message, param=RANK_HEADER)
    return int(values[0])


def _name_in(headers: Headers, header: str, *, code: str, required: bool) -> str | None:
    """The name in `header`, as it was sent. None if it isn't there and needn't be.

    Raises:
        InvalidRequestError: with this `code`: the header is missing or comes more than once, or its value is
            none that is allowed. The value may be secret, so it isn't shown.
    """
    values = headers.getlist(header)
    if not values and not required:
        return None
    if len(values) == 1 and NAME.fullmatch(values[0]):
        return values[0]
    given = f"{len(values)} headers" if len(values) != 1 else f"{len(values[0])} characters"
    allowed = f"one header of 1 to {MAX_NAME_CHARS} visible ASCII characters without commas"
    message = f"{header}: {given}; {allowed} is {'needed' if required else 'allowed'}"
    raise InvalidRequestError(message, param=header, code=code)
