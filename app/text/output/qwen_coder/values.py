"""How a parameter's value is written, by the tool's schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from app.text.output.grammars import Tool

ValueKind = Literal["text", "text or null", "json"]
MAX_REFERENCES = 8
"""Of a reference to a reference and so on."""

Kinds = Mapping[tuple[str, str], ValueKind]
"""By the names of tool and parameter; a parameter that isn't there is text."""


def kinds_of(tools: Sequence[Tool]) -> dict[tuple[str, str], ValueKind]:
    """Those of all parameters that the tools' schemas name."""
    return {
        (tool.name, name): kind_of(schema, tool.parameters or {})
        for tool in tools
        for name, schema in ((tool.parameters or {}).get("properties") or {}).items()
    }


def kind_of(schema: Any, whole: Mapping[str, Any]) -> ValueKind:
    """How a value by `schema`, a part of `whole`, is written: where it may be a string it is text."""
    types = _types(schema, whole)
    if "string" not in types:
        return "json"
    return "text or null" if "null" in types else "text"


def as_json(text: str, kind: ValueKind) -> str:
    """The JSON of a value that was written as `text`; what should be JSON and isn't is a string."""
    if kind == "text" or (kind == "text or null" and text.strip() != "null"):
        return json.dumps(text, ensure_ascii=False)
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)


def resolved(schema: Any, whole: Mapping[str, Any]) -> Any:
    """What `schema` refers to, if that is a part of `whole` under a name."""
    for _ in range(MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        place, _, name = reference.removeprefix("#/").partition("/")
        parts = whole.get(place)
        schema = parts.get(name) if isinstance(parts, dict) else None
    return schema


def _types(schema: Any, whole: Mapping[str, Any]) -> set[str]:
    """JSON's types that `schema` names itself; of what it says in other ways, those of its values."""
    schema = resolved(schema, whole)
    if not isinstance(schema, dict):
        return set()
    given = schema.get("type", [])
    types = {given} if isinstance(given, str) else {each for each in given if isinstance(each, str)}
    values = [*(schema.get("enum") or []), *([schema["const"]] if "const" in schema else [])]
    if not types:
        types = {"string" if isinstance(value, str) else "null" if value is None else "" for value in values}
    options = [each for name in ("anyOf", "oneOf") for each in schema.get(name) or []]
    return types.union(*(_types(each, {}) for each in options))
