"""The ways in which a request says what its output must be: OpenAI's, vLLM's, and vLLM's older one."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.api.fields import RESPONSE_FORMAT, STRUCTURED_OUTPUTS, Fields
from app.api.request_model import RequestModel
from app.errors import InvalidRequestError
from app.generation import StructuredOutput

JsonSchema = str | dict[str, Any]
Regex = Annotated[str, Field(min_length=1)]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024)]

ANY_OBJECT = '{"type": "object"}'


class NamedSchema(RequestModel):
    """OpenAI's `response_format.json_schema`; its outputs always keep to the schema, `strict` or not."""

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool = False


class ResponseFormat(RequestModel):
    """OpenAI's `response_format`.

    Attributes:
        plain_schema: the schema itself, as llama.cpp and others take it, with either type of JSON.
    """

    unserved: ClassVar[Fields] = RESPONSE_FORMAT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    plain_schema: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _schema_fits_type(self) -> Self:
        is_plain = self.plain_schema is not None
        wants_named = self.type == "json_schema" and not is_plain
        if wants_named != (self.json_schema is not None):
            message = "response_format.json_schema: goes with type 'json_schema', which needs it"
            raise InvalidRequestError(message, param="response_format.json_schema")
        if is_plain and self.type == "text":
            message = "response_format.schema: goes with type 'json_object' or 'json_schema'"
            raise InvalidRequestError(message, param="response_format.schema")
        return self


class StructuredOutputs(RequestModel):
    """vLLM's `structured_outputs`."""

    unserved: ClassVar[Fields] = STRUCTURED_OUTPUTS

    json_schema: JsonSchema | None = Field(None, alias="json")
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool = False


class StructuredOutputFields(RequestModel):
    """Everything by which a request can ask for a structured output; at most one of it may be given."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    def structured_output(self) -> StructuredOutput | None:
        """What the output must be; None for any text.

        Raises:
            InvalidRequestError: more than one thing is asked for, or it is too long.
        """
        wanted = [*self._from_response_format(), *self._from_structured_outputs(), *self._from_guided()]
        if len(wanted) > 1:
            first, second, *_ = (each.field for each in wanted)
            raise InvalidRequestError(f"{second}: {first} is given too; send one of them", param=second)
        return wanted[0] if wanted else None

    def _from_response_format(self) -> list[StructuredOutput]:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return []
        if wanted.plain_schema is not None:
            schema = json.dumps(wanted.plain_schema)
            return [StructuredOutput("json_schema", schema, "response_format.schema")]
        if wanted.json_schema is None:
            return [StructuredOutput("json_schema", ANY_OBJECT, "response_format")]
        schema = json.dumps(wanted.json_schema.json_schema)
        return [StructuredOutput("json_schema", schema, "response_format.json_schema.schema")]

    def _from_structured_outputs(self) -> list[StructuredOutput]:
        wanted = self.structured_outputs
        if wanted is None:
            return []
        given = _all_given(
            "structured_outputs.", wanted.json_schema, wanted.regex, wanted.choice, wanted.grammar
        )
        if wanted.json_object:
            given.append(StructuredOutput("json_schema", ANY_OBJECT, "structured_outputs.json_object"))
        return given

    def _from_guided(self) -> list[StructuredOutput]:
        return _all_given(
            "guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar
        )


def _all_given(
    prefix: str, schema: JsonSchema | None, regex: str | None, choice: list[str] | None, grammar: str | None
) -> list[StructuredOutput]:
    given: list[StructuredOutput] = []
    if schema is not None:
        source = schema if isinstance(schema, str) else json.dumps(schema)
        given.append(StructuredOutput("json_schema", source, f"{prefix}json"))
    if regex is not None:
        given.append(StructuredOutput("regex", regex, f"{prefix}regex"))
    if choice is not None:
        given.append(StructuredOutput("choice", json.dumps(choice), f"{prefix}choice"))
    if grammar is not None:
        given.append(StructuredOutput("grammar", grammar, f"{prefix}grammar"))
    return given
