"""The OpenAPI document as a page for people: plain HTML, which runs no script and loads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from app.deployments.ingress.openapi.describe import SCHEMAS

Json = dict[str, Any]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page's Content-Security-Policy: its own style, and nothing else."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
code, .method { font-family: ui-monospace, monospace } .method { font-weight: bold }
table { border-collapse: collapse; margin: .5em 0 1.5em } td, th { text-align: left; vertical-align: top }
td, th { border-bottom: 1px solid #ddd; padding: .2em 1em .2em 0 } h2 { margin-top: 2em } pre { margin: 0 }
"""


def openapi_page(document: Json) -> str:
    """The page: every route, then every object."""
    info = document["info"]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            f'<p>{escape(info["description"])}</p><p><a href="openapi.json">openapi.json</a></p>',
            "<h2>Routes</h2><table>",
            *_routes(document["paths"]),
            "</table>",
            *_objects(document["components"]["schemas"]),
            "</html>",
        ]
    )


def _routes(paths: Json) -> Iterator[str]:
    for path, operations in paths.items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            answers = operation["responses"].get("200", {}).get("content", {})
            shown = dict.fromkeys(_type(each.get("schema", {})) for each in answers.values())
            given, got = _type(body.get("schema", {})), " or ".join(filter(None, shown))
            yield (
                f'<tr><td class="method">{method.upper()}<td><code>{escape(path)}</code>'
                f"<td>{escape(operation['summary'])}<td>{' → '.join(filter(None, (given, got)))}"
            )


def _objects(schemas: Json) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f'<h2 id="{escape(name)}">{escape(name)}</h2>'
        if "description" in schema:
            yield f"<pre>{escape(schema['description'])}</pre>"
        properties = schema.get("properties")
        if properties is None:
            yield f"<p>{_type(schema)}"
            continue
        yield "<table><tr><th>field<th>type<th>default"
        required = schema.get("required", [])
        for field, of in properties.items():
            value = of.get("default")
            default = "required" if field in required else "" if value is None else json.dumps(value)
            yield f"<tr><td><code>{escape(field)}</code><td>{_type(of)}<td>{escape(default)}"
        yield "</table>"


def _type(schema: Json) -> str:
    """A schema in a few words, as HTML; nothing for one that says nothing."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(SCHEMAS))
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema or "oneOf" in schema:
        options: list[Json] = schema["anyOf"] if "anyOf" in schema else schema["oneOf"]
        return " or ".join(filter(None, (_type(each) for each in options if each != {"type": "null"})))
    if "enum" in schema or "const" in schema:
        values: list[Any] = schema["enum"] if "enum" in schema else [schema["const"]]
        return " or ".join(escape(repr(each)) for each in values if each is not None)
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {_type(schema.get('items', {})) or 'anything'}"
    return escape(f"{' or '.join(kind) if isinstance(kind, list) else kind}{_limits(schema)}")


def _limits(schema: Json) -> str:
    names = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]}" for name, sign in names.items() if name in schema]
    return f" {', '.join(limits)}" if limits else ""
