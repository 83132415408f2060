"""JSON schemas as the grammar library takes them: without `format`s that it can't enforce.

By the standard (JSON Schema 2020-12, Validation, 7.2.1) a `format` is an annotation unless both sides agree
on more. Those that the library knows are enforced. Any other is left out: it would refuse the whole schema.
Keywords that change what is valid stay, also where the library can't enforce them: then it refuses them.
"""

from __future__ import annotations

import json
from typing import Any

ENFORCED_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose values are schemas by a name of the client's."""
_SCHEMAS = (
    *("items", "prefixItems", "additionalItems", "contains", "additionalProperties", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"),
)
"""Keywords whose value is a schema or a list of them."""


def without_annotations(source: str) -> str:
    """The schema in `source` without formats that aren't enforced; `source` itself if there are none."""
    if '"format"' not in source:
        return source
    try:
        schema = json.loads(source)
        changed = _stripped(schema)
        return source if changed == schema else json.dumps(changed)
    except (ValueError, RecursionError):
        return source  # the library says what is wrong with it


def _stripped(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_stripped(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _value(name, value) for name, value in schema.items() if not _is_annotation(name, value)}


def _value(name: str, value: Any) -> Any:
    if name in _BY_NAME and isinstance(value, dict):
        return {each: _stripped(inner) for each, inner in value.items()}
    return _stripped(value) if name in _SCHEMAS else value


def _is_annotation(name: str, value: Any) -> bool:
    return name == "format" and isinstance(value, str) and value not in ENFORCED_FORMATS
