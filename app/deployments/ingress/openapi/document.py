"""The OpenAPI document: FastAPI's of the real routes, with the bodies' models, the answers and the errors.

FastAPI itself checks no body here, so what its document says of that isn't true, and is replaced.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app import __version__
from app.api.anthropic.request import CountRequest, MessagesRequest
from app.api.error_shapes import is_anthropic
from app.api.native.request import GenerateBody
from app.api.openai.requests import ChatRequest, TextRequest
from app.api.request_model import RequestModel
from app.api.responses.request import ResponseRequest
from app.api.tokens import DetokenizeBody, TokenizeChat, TokenizeText
from app.deployments.ingress.openapi.answers import ANSWERS
from app.deployments.ingress.openapi.describe import SCHEMAS

Json = dict[str, Any]

BODIES: tuple[type[RequestModel], ...] = (
    ChatRequest,
    TextRequest,
    ResponseRequest,
    GenerateBody,
    TokenizeText,
    TokenizeChat,
    DetokenizeBody,
    MessagesRequest,
    CountRequest,
)
"""The models that routes name."""

DESCRIPTION = """Fields of bodies that a schema doesn't list are taken where they ask for nothing, refused \
where they ask for what can't be done, and else ignored and named in the header x-kvbeacon-ignored-fields. \
null is the same as leaving a field out."""
WRONG = "What is wrong, in one sentence; `param`: the field or header at fault, if there is one."


def openapi_document(api: FastAPI) -> Json:
    """The document of an application, whose routes say more of themselves by `described`."""
    document = get_openapi(title="kvbeacon", version=__version__, description=DESCRIPTION, routes=api.routes)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["summary"] = operation.get("description", operation["summary"]).partition("\n")[0]
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _error_response(path)
    document["components"] = {"schemas": {**_body_schemas(), **ANSWERS}}
    return document


def _error_response(path: str) -> Json:
    schema = {"$ref": f"{SCHEMAS}{'AnthropicError' if is_anthropic(path) else 'Error'}"}
    return {"description": WRONG, "content": {"application/json": {"schema": schema}}}


def _body_schemas() -> Json:
    models: list[Any] = [(model, "validation") for model in BODIES]
    _, schemas = models_json_schema(models, ref_template=f"{SCHEMAS}{{model}}")
    return {name: _as_taken(schema) for name, schema in schemas["$defs"].items()}


def _as_taken(schema: Json) -> Json:
    """An object's schema as bodies are sifted: unknown fields pass, and null is no value."""
    required = schema.get("required", [])
    properties = {
        name: each if name in required else _or_null(each)
        for name, each in schema.get("properties", {}).items()
    }
    taken = {name: value for name, value in schema.items() if name != "additionalProperties"}
    return {**taken, "properties": properties} if properties else taken


def _or_null(schema: Json) -> Json:
    options = schema.get("anyOf", [])
    if {"type": "null"} in options:
        return schema
    outside: Json = {name: schema[name] for name in ("default", "description", "title") if name in schema}
    inside = {name: value for name, value in schema.items() if name not in outside}
    return {"anyOf": [*(options or [inside]), {"type": "null"}], **outside}
