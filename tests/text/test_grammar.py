"""Grammars over the real tokenizer: what they let through, and what is refused before it can do harm."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from app.errors import InvalidRequestError, RequestFailedError
from app.generation import MAX_SOURCE_CHARS, StructuredOutput
from app.text.grammar import GrammarCompiler
from app.text.tokenizer import Tokenizer

PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
WIDE = '{"type": "object", "x-guidance": {"whitespace_pattern": "[ ]{1,64}"}}'


@pytest.fixture(scope="session")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_dir)


@pytest.fixture(scope="session")
def compiler(smollm2_dir: Path, tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler.from_folder(smollm2_dir, tokenizer.eos_token_ids)


def json_schema(source: str) -> StructuredOutput:
    return StructuredOutput("json_schema", source, "structured_outputs.json")


def regex(source: str) -> StructuredOutput:
    return StructuredOutput("regex", source, "structured_outputs.regex")


def choice(*texts: str) -> StructuredOutput:
    return StructuredOutput("choice", json.dumps(texts), "structured_outputs.choice")


def grammar(source: str) -> StructuredOutput:
    return StructuredOutput("grammar", source, "structured_outputs.grammar")


class Reading:
    """A text taken token by token."""

    def __init__(self, compiler: GrammarCompiler, tokenizer: Tokenizer, wanted: StructuredOutput) -> None:
        self._state = compiler.grammar(wanted)
        self._tokenizer = tokenizer

    def take(self, text: str) -> bool:
        """Whether every token was allowed in its turn."""
        for token_id in self._tokenizer.encode(text):
            if not self._state.allowed_tokens()[token_id]:
                return False
            self._state.accept(token_id)
        return True

    @property
    def may_end(self) -> bool:
        (eos,) = self._tokenizer.eos_token_ids
        return self._state.is_finished or self._state.allowed_tokens()[eos] != 0

    @property
    def is_finished(self) -> bool:
        return self._state.is_finished


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (json_schema(PERSON), '{"name": "Zoë 🙂", "age": 30}'),
        (json_schema(PERSON), '{"name":"","age":-1}'),
        (json_schema(PERSON), '{\n  "name": "A",\n  "age": 30\n}'),
        (json_schema(PERSON), '{"name": "' + 40 * " " + r"\"" + 40 * " " + '",' + 32 * " " + '"age": 30}'),
        (json_schema(WIDE), "{" + 64 * " " + "}"),
        (json_schema('{"type": "object"}'), '{"anything": [1, null, {"a": true}]}'),
        (json_schema("{}"), '"text"'),
        (regex(r"[A-Z]{2}-\d{3}"), "AB-123"),
        (choice("yes", "no", 'he said "no"', "ü\n"), 'he said "no"'),
        (choice("yes", "no", "ü\n"), "ü\n"),
        (grammar('start: "(" start ")" | "x"'), "(((x)))"),
        (grammar('root ::= "(" root ")" | "x"'), "((x))"),
    ],
)
def test_a_text_that_fits_goes_through_and_may_end_there_only(
    compiler: GrammarCompiler, tokenizer: Tokenizer, wanted: StructuredOutput, text: str
) -> None:
    reading = Reading(compiler, tokenizer, wanted)
    assert not reading.may_end
    assert reading.take(text)
    assert reading.may_end


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (json_schema(PERSON), '{"name": "A", "age": "old"}'),
        (json_schema(PERSON), '{"age": 30, "name": "A"}'),
        (json_schema(PERSON), '{"name": "A"}'),
        (json_schema(PERSON), " {"),
        (json_schema(PERSON), "{" + 40 * " "),
        (json_schema(PERSON), '{"name":' + 20 * " \n"),
        (json_schema(PERSON), r'{"name": "\\"' + 40 * "\t"),
        (json_schema('{"type": "object"}'), "[1]"),
        (regex(r"\d+"), "12a"),
        (choice("yes", "no"), "maybe"),
        (choice("yes", "no"), "<|im_start|>"),
        (grammar('start: "(" start ")" | "x"'), "(x()"),
    ],
)
def test_a_text_that_does_not_fit_is_stopped(
    compiler: GrammarCompiler, tokenizer: Tokenizer, wanted: StructuredOutput, text: str
) -> None:
    assert not Reading(compiler, tokenizer, wanted).take(text)


def test_it_is_finished_when_nothing_can_follow(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    reading = Reading(compiler, tokenizer, choice("yes", "no"))
    assert not reading.is_finished
    assert reading.take("yes")
    assert reading.is_finished
    open_ended = Reading(compiler, tokenizer, regex("a+"))
    assert open_ended.take("aaa")
    assert (open_ended.is_finished, open_ended.may_end) == (False, True)


def test_two_outputs_of_one_grammar_do_not_disturb_each_other(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    first, second = (Reading(compiler, tokenizer, json_schema(PERSON)) for _ in range(2))
    assert first.take('{"name": "A"')
    assert second.take('{"name": "B", "age": 1}')
    assert first.take(', "age": 2}')
    assert first.is_finished
    assert second.is_finished


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (json_schema("{"), "."),
        (json_schema('"text"'), "schema must be an object"),
        (json_schema('{"type": "strange"}'), "Invalid type: strange"),
        (json_schema('{"not": {"type": "string"}}'), 'Unimplemented keys: ["not"]'),
        (json_schema('{"type": "integer", "minimum": 5, "maximum": 3}'), "Unsatisfiable"),
        (json_schema('{"enum": []}'), "Unsatisfiable"),
        (json_schema('{"$ref": "https://example.com/schema"}'), "."),
        (json_schema('{"type": "string", "pattern": "(a"}'), "unclosed group"),
        (json_schema('{"type":"array","items":' * 2000 + "{}" + "}" * 2000), "recursion limit"),
        (regex("a(b"), "unclosed group"),
        (regex("a(?=b)"), "look-around"),
        (regex("(" * 5000 + "a" + ")" * 5000), "nest"),
        (grammar("start: missing"), 'unknown name: "missing"'),
        (grammar("start: " + "(" * 5000 + '"a"' + ")" * 5000), "too deeply nested"),
        (grammar("root ::= " + "(" * 5000 + '"a"' + ")" * 5000), "recursion"),
        (grammar("start: WORD\nWORD: /a/ & /b/"), "."),
        (grammar(""), "."),
    ],
)
def test_what_does_not_compile_is_refused_with_the_field_and_the_reason(
    compiler: GrammarCompiler, wanted: StructuredOutput, reason: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        compiler.grammar(wanted)
    assert refused.value.message.startswith(f"{wanted.field}: not a ")
    assert reason in refused.value.message
    assert len(refused.value.message) < 700
    assert (refused.value.param, refused.value.code) == (wanted.field, "invalid_grammar")


@pytest.mark.parametrize(
    "wanted",
    [
        grammar("start: r0\n" + "\n".join(f"r{n}:r{n + 1}" for n in range(5000)) + '\nr5000: "a"'),
        grammar("root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(4000)) + '\nr4000 ::= "a"'),
        json_schema(
            '{"$ref":"#/$defs/0","$defs":{'
            + "".join(f'"{n}":{{"items":{{"$ref":"#/$defs/{n + 1}"}}}},' for n in range(1600))
            + '"1600":{}}}'
        ),
    ],
    ids=["Lark", "GBNF", "schema"],
)
def test_the_longest_chains_do_not_overflow_the_stack(
    compiler: GrammarCompiler, wanted: StructuredOutput
) -> None:
    assert len(wanted.source) > 0.85 * MAX_SOURCE_CHARS
    assert any(compiler.grammar(wanted).allowed_tokens())


def test_a_source_has_a_longest_length() -> None:
    with pytest.raises(InvalidRequestError, match=rf"structured_outputs\.regex: .*{MAX_SOURCE_CHARS}"):
        regex("a" * (MAX_SOURCE_CHARS + 1))


def test_a_token_that_was_not_allowed_is_an_error_of_that_output_only(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    state = compiler.grammar(choice("yes", "no"))
    state.accept(tokenizer.encode("maybe")[0])
    assert not state.is_finished
    with pytest.raises(RequestFailedError, match=r"structured output: .*doesn't satisfy the grammar"):
        state.allowed_tokens()
    assert Reading(compiler, tokenizer, choice("yes", "no")).take("no")


def test_grammars_are_made_from_several_threads_at_once(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    taken = []

    def make_and_use(index: int) -> None:
        for number in range(20):
            reading = Reading(compiler, tokenizer, choice(f"text {number}", f"other {index % 2}"))
            taken.append(reading.take(f"text {number}"))

    threads = [threading.Thread(target=make_and_use, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == [True] * 80


def test_a_tokenizer_that_llguidance_can_not_read_refuses_structured_output_only() -> None:
    compiler = GrammarCompiler("{}", [2])
    with pytest.raises(InvalidRequestError, match="this model's tokenizer"):
        compiler.grammar(choice("yes", "no"))
