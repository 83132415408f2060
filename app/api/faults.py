"""What pydantic finds wrong with a body, as one error in sentences of ours.

The field is named as the client sent it, by its path in the body: pydantic's own path also has the names of a
union's members, which no client has sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from app.errors import MAX_SHOWN, InvalidRequestError, shown

Detail = Mapping[str, Any]

_SECRET_FIELDS = ("cache_salt", "extra_key", "session_id")
"""Salts, and what a client may log in with."""

_KINDS = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "string_unicode": "text that UTF-8 can express",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "union_tag_not_found": "an object",
}
"""What is needed where a value has another type."""

_LIMITS: dict[str, Callable[[Any], str]] = {
    "greater_than": lambda of: f"more than {_bound(of['gt'])} is needed",
    "greater_than_equal": lambda of: f"at least {_bound(of['ge'])} is needed",
    "less_than": lambda of: f"less than {_bound(of['lt'])} is allowed",
    "less_than_equal": lambda of: f"at most {_bound(of['le'])} is allowed",
    "string_too_short": lambda of: f"{_number(of['min_length'], 'character')} at least",
    "string_too_long": lambda of: f"{_number(of['max_length'], 'character')} at most",
    "too_short": lambda of: f"{_number(of['min_length'], 'entry')} at least, not {of['actual_length']}",
    "too_long": lambda of: f"{_number(of['max_length'], 'entry')} at most",
    "literal_error": lambda of: f"allowed: {of['expected']}",
}
"""What is allowed where a value has the right type."""

_PLACE = re.compile(r" at (line \d+ column \d+)$")
_NOT_JSON = {
    "EOF": "it ends too early",
    "recursion": "it is nested too deeply",
    "trailing characters": "something follows its end",
    "control character": "a string has a control character, which must be written as \\u",
    "invalid unicode": "it isn't UTF-8",
    "lone": "half of a surrogate pair is no character",
    "unexpected end of hex": "half of a surrogate pair is no character",
    "trailing comma": "nothing follows a comma",
    "key must be": "a name must be a string in double quotes",
    "number": "a number is written in another way",
}
"""How the JSON reader's reasons begin, or a word in them, and what to say of it."""


def not_json(error: ValueError) -> InvalidRequestError:
    """The error of a body that isn't JSON, of what its reader said."""
    reason = str(error)
    place = _PLACE.search(reason)
    said = next((ours for word, ours in _NOT_JSON.items() if word in reason), "something else is expected")
    where = f", at {place[1]}" if place else ""
    return InvalidRequestError(f"the body isn't JSON: {said}{where}", code="invalid_json")


def invalid(error: ValidationError, body: Any) -> InvalidRequestError:
    """The error of the first field at fault.

    Args:
        error: pydantic's.
        body: what was validated.
    """
    # Of a field of several types, the one that the value came nearest to has the fault that lies deepest.
    details = [(_path(detail, body), detail) for detail in error.errors(include_url=False)]
    path, first = max(details, key=lambda each: len(each[0]))
    field = ".".join(path)
    if first["type"] == "missing":
        return InvalidRequestError(f"{short_path(field)}: required", param=field, code="missing_field")
    same = [detail for other, detail in details if other == path]
    value = "" if _may_be_secret(field, first["input"]) else f" = {shown(first['input'])}"
    place = short_path(field) or "the body"
    return InvalidRequestError(f"{place}{value}: {_sentence(same)}", param=field or None)


def _sentence(details: Sequence[Detail]) -> str:
    """What is needed instead, in any of the ways that `details` say of one field."""
    kinds = dict.fromkeys(_KINDS[each["type"]] for each in details if each["type"] in _KINDS)
    others = dict.fromkeys(_limit(each) for each in details if each["type"] not in _KINDS)
    # What has the right type is only out of its limits.
    return ", or ".join(others) or f"{' or '.join(kinds)} is needed"


def _limit(detail: Detail) -> str:
    limit = _LIMITS.get(detail["type"])
    if limit is not None:
        return limit(detail["ctx"])
    # A sentence of a validator of ours; pydantic has no other faults with the types that requests have.
    return str(detail["msg"]).removeprefix("Value error, ")


def _path(detail: Detail, body: Any) -> tuple[str, ...]:
    """The parts of the fault's place that the body has; of a missing field also its own name."""
    path: list[str] = []
    for part in detail["loc"]:
        is_place = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if is_place or (isinstance(body, dict) and part in body):
            body = body[part]
            path.append(str(part))
    return (*path, str(detail["loc"][-1])) if detail["type"] == "missing" else tuple(path)


def _may_be_secret(field: str, value: Any) -> bool:
    """Whether `value` could be secret, also one of the wrong form: answers may be logged on their way."""
    return field in _SECRET_FIELDS and isinstance(value, str | list | dict) and len(value) > 0


def _bound(number: float) -> str:
    return str(int(number) if number == int(number) else number)


def _number(number: int, noun: str) -> str:
    plural = f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def short_path(field: str) -> str:
    """A field's path, which a client may have made long, for a message."""
    return field if len(field) <= MAX_SHOWN else f"{field[: MAX_SHOWN - 3]}..."
