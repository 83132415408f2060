"""Every way to ask for a structured output."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.errors import InvalidRequestError
from app.generation import SamplingParams, StructuredOutput
from tests.support.completion_bodies import chat, refusal, text

SCHEMA = {"type": "object", "properties": {"a": {"enum": [None, "ü"]}}}


@pytest.mark.parametrize("parse", [text, chat])
@pytest.mark.parametrize(
    ("fields", "kind", "source", "field"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            "json_schema",
            json.dumps(SCHEMA),
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_object"}},
            "json_schema",
            '{"type": "object"}',
            "response_format",
        ),
        *(
            (
                {"response_format": {"type": kind, "schema": SCHEMA}},
                "json_schema",
                json.dumps(SCHEMA),
                "response_format.schema",
            )
            for kind in ("json_object", "json_schema")
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            "json_schema",
            json.dumps(SCHEMA),
            "structured_outputs.json",
        ),
        ({"structured_outputs": {"json": "{}"}}, "json_schema", "{}", "structured_outputs.json"),
        (
            {"structured_outputs": {"json_object": True}},
            "json_schema",
            '{"type": "object"}',
            "structured_outputs.json_object",
        ),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]', "structured_outputs.choice"),
        (
            {"structured_outputs": {"grammar": "start: A"}},
            "grammar",
            "start: A",
            "structured_outputs.grammar",
        ),
        ({"guided_json": SCHEMA}, "json_schema", json.dumps(SCHEMA), "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a"]}, "choice", '["a"]', "guided_choice"),
        ({"guided_grammar": "start: A"}, "grammar", "start: A", "guided_grammar"),
    ],
)
def test_structured_output_in_every_way_to_ask_for_it(
    parse: Any, fields: dict[str, Any], kind: Any, source: str, field: str
) -> None:
    params = parse(**fields).sampling_params(9)
    assert params == SamplingParams(9, structured_output=StructuredOutput(kind, source, field))


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "json_object": False}},
    ],
)
def test_a_structured_output_that_asks_for_nothing(fields: dict[str, Any]) -> None:
    assert chat(**fields).sampling_params(9) == SamplingParams(9)


def test_a_schema_goes_with_a_type_of_json_and_once() -> None:
    named = {"name": "a", "schema": SCHEMA}
    for wrong, param in (
        ({"type": "text", "schema": SCHEMA}, "response_format.schema"),
        ({"type": "json_schema", "schema": SCHEMA, "json_schema": named}, "response_format.json_schema"),
        ({"type": "json_object", "json_schema": named}, "response_format.json_schema"),
        ({"type": "json_schema"}, "response_format.json_schema"),
    ):
        assert refusal(chat, response_format=wrong).param == param


@pytest.mark.parametrize(
    ("fields", "param", "other"),
    [
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs.choice",
            "structured_outputs.regex",
        ),
        ({"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json", "response_format"),
        ({"guided_regex": "a", "guided_grammar": "b"}, "guided_grammar", "guided_regex"),
    ],
)
def test_only_one_structured_output(fields: dict[str, Any], param: str, other: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields).sampling_params(9)
    assert caught.value.message == f"{param}: {other} is given too; send one of them"
    assert caught.value.param == param


def test_a_schema_has_a_longest_length() -> None:
    with pytest.raises(InvalidRequestError, match="at most 65536") as caught:
        chat(guided_json={"enum": ["x" * 70_000]}).sampling_params(9)
    assert caught.value.param == "guided_json"
