"""What a route says of itself for the OpenAPI document, besides its path, its methods and its docstring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.api.request_model import RequestModel

Json = dict[str, Any]
SCHEMAS = "#/components/schemas/"


def described(
    *bodies: type[RequestModel],
    answer: str | None = None,
    events: str | None = None,
    query: Mapping[str, str] | None = None,
) -> Json:
    """The `openapi_extra` of a route.

    Args:
        bodies: the models of which its body is one.
        answer: the schema of its answer, by its name in `answers.ANSWERS`.
        events: the same of a stream's events.
        query: parameters of its query, with what they mean.
    """
    said: Json = {}
    if bodies:
        options = [{"$ref": f"{SCHEMAS}{body.__name__}"} for body in bodies]
        schema = options[0] if len(options) == 1 else {"anyOf": options}
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    content: Json = {}
    if answer is not None:
        content["application/json"] = {"schema": {"$ref": f"{SCHEMAS}{answer}"}}
    if events is not None:
        content["text/event-stream"] = {"schema": {"$ref": f"{SCHEMAS}{events}"}}
    if content:
        said["responses"] = {"200": {"content": content}}
    if query:
        said["parameters"] = [
            {"name": name, "in": "query", "description": meaning, "schema": {"type": "string"}}
            for name, meaning in query.items()
        ]
    return said
