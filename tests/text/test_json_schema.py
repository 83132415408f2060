"""Which `format`s of a schema reach the grammar library, which takes only those that it can enforce."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidRequestError
from app.generation import StructuredOutput
from app.text.grammar import GrammarCompiler
from app.text.json_schema import ENFORCED_FORMATS, without_annotations

OTHERS = ("uri-reference", "regex", "json-pointer", "int32", "float", "password", "byte", "no-such-format")


@pytest.fixture(scope="module")
def compiler(smollm2_dir: Path) -> GrammarCompiler:
    return GrammarCompiler.from_folder(smollm2_dir, [2])


def stripped(schema: Any) -> Any:
    return json.loads(without_annotations(json.dumps(schema)))


@pytest.mark.parametrize("name", [*sorted(ENFORCED_FORMATS), *OTHERS])
def test_a_schema_with_any_format_compiles(compiler: GrammarCompiler, name: str) -> None:
    source = json.dumps({"type": "object", "properties": {"a": {"type": "string", "format": name}}})
    compiler.grammar(StructuredOutput("json_schema", source, "guided_json"))


def test_formats_are_left_out_wherever_a_schema_is() -> None:
    inner = {"type": "string", "format": "password"}
    bare = {"type": "string"}
    for keyword in ("properties", "$defs", "definitions", "patternProperties"):
        assert stripped({keyword: {"format": inner}}) == {keyword: {"format": bare}}
    for keyword in ("items", "additionalProperties", "not", "if"):
        assert stripped({keyword: inner}) == {keyword: bare}
    for keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
        assert stripped({keyword: [inner, True]}) == {keyword: [bare, True]}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"format": {"enum": ["password"]}}},
        {"enum": [{"format": "password"}]},
        {"const": {"format": "password"}, "default": {"format": "int32"}, "examples": [{"format": "byte"}]},
        {"type": "string", "format": "uuid"},
        {"format": 5},
        [],
        5,
    ],
)
def test_what_is_no_annotation_stays(schema: Any) -> None:
    assert stripped(schema) == schema


@pytest.mark.parametrize("source", ['{"format":', '{"a": "\\ud800", "format": "byte"}', '{"format": ' * 5000])
def test_what_is_no_schema_is_left_to_the_library(source: str) -> None:
    without_annotations(source)


def test_a_keyword_that_changes_what_is_valid_stays_an_error(compiler: GrammarCompiler) -> None:
    wanted = StructuredOutput("json_schema", '{"type": "array", "uniqueItems": true}', "guided_json")
    with pytest.raises(InvalidRequestError, match="uniqueItems"):
        compiler.grammar(wanted)
