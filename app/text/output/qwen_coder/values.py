"""How a parameter's value is written, by the tool's schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from app.text.output.grammars import Tool

ValueKind = Literal["text", "text or null", "json"]
Kinds = Mapping[tuple[str, str], ValueKind]
"""By the names of tool and parameter; a parameter that isn't there is text."""


def kinds_of(tools: Sequence[Tool]) -> dict[tuple[str, str], ValueKind]:
    """Those of all parameters that the tools' schemas name."""
    return {
        (tool.name, name): kind_of(schema, tool.parameters or {})
        for tool in tools
        for name, schema in properties_of(tool.parameters or {}).items()
    }


def kind_of(schema: Any, whole: Mapping[str, Any]) -> ValueKind:
    """How a value by `schema`, a part of `whole`, is written: where it may be a string it is text."""
    types = _types(schema, whole, set())
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


def properties_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schemas of the parameters that a tool's schema names."""
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def values_of(schema: Any, whole: Mapping[str, Any]) -> list[Any]:
    """The only values that `schema` allows, if it lists them."""
    schema, _ = _resolved(schema, whole, frozenset())
    if not isinstance(schema, dict):
        return []
    enum = schema.get("enum")
    return [schema["const"]] if "const" in schema else enum if isinstance(enum, list) else []


def _resolved(schema: Any, whole: Mapping[str, Any], seen: frozenset[str]) -> tuple[Any, frozenset[str]]:
    """What `schema` refers to, if that is a part of `whole` under a name; and the references followed so far.

    None for a reference that was followed before: it would go round in a circle.
    """
    while isinstance(schema, dict) and isinstance(reference := schema.get("$ref"), str):
        place, _, name = reference.removeprefix("#/").partition("/")
        parts = whole.get(place)
        if reference in seen or not isinstance(parts, dict):
            return None, seen
        schema, seen = parts.get(name), seen | {reference}
    return schema, seen


def _types(schema: Any, whole: Mapping[str, Any], seen: set[str]) -> set[str]:
    """JSON's types that `schema` names itself; of what it says in other ways, those of its values.

    `seen`: references that were followed, so that no one is twice.
    """
    schema, followed = _resolved(schema, whole, frozenset(seen))
    seen |= followed
    if not isinstance(schema, dict):
        return set()
    given = schema.get("type")
    types = {each for each in (given if isinstance(given, list) else [given]) if isinstance(each, str)}
    if not types:
        values = values_of(schema, whole)
        types = {"string" if isinstance(value, str) else "null" if value is None else "" for value in values}
    for name in ("anyOf", "oneOf"):
        options = schema.get(name)
        for option in options if isinstance(options, list) else ():
            types |= _types(option, whole, seen)
    return types
