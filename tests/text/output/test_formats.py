"""Formats chosen by templates, and grammars that keep calls to what parsers read, on the real tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from app.errors import InvalidRequestError
from app.generation import SamplingParams, StructuredOutput
from app.settings.model import ModelConfig
from app.text.grammar import GrammarCompiler
from app.text.output.formats import CallWish, OutputFormats
from app.text.output.grammars import Tool
from app.text.output.parts import CallArguments, CallStart, Text
from app.text.template.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "array", "uniqueItems": True}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"City": {"type": "string", "format": "no-such-format"}},
    },
)
TIME = Tool("get_time")
TEMPLATES = {
    "hermes": "{% for t in tools %}{{ t }}{% endfor %}<tool_call></tool_call>",
    "llama_json": 'Respond with {"name": function name, "parameters": dictionary}. <|python_tag|>',
    "llama_pythonic": "[func_name1(params_name1=params_value1)]",
    "mistral": "[AVAILABLE_TOOLS][TOOL_CALLS]",
    "qwen3_coder": "<tool_call><function=name><parameter=a></parameter></function></tool_call>",
    "none": "{{ messages }}",
}
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
LLAMA_CALL = '{"name": "get_weather", "parameters": {"city": "Paris"}}'


@pytest.fixture(scope="module")
def text(smollm2_dir: Path) -> str:
    return (smollm2_dir / "tokenizer.json").read_text()


NewFormats = Callable[..., OutputFormats]


@pytest.fixture(scope="module")
def new_formats(text: str) -> NewFormats:
    backend = tokenizers.Tokenizer.from_str(text)

    def make(template: str, *, constrains: bool = True, **config: Any) -> OutputFormats:
        tokenizer = Tokenizer(backend, eos_token_ids=[2], chat_template=ChatTemplate(template, {}))
        return OutputFormats(tokenizer, ModelConfig(**config), constrains=constrains)

    return make


class Model:
    """Writes what a grammar allows: a given text, or at random."""

    def __init__(self, tokenizer_json: str) -> None:
        self._compiler = GrammarCompiler(tokenizer_json, [2])
        backend = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer = Tokenizer(backend, eos_token_ids=[2], chat_template=None)

    def can_write(self, wanted: StructuredOutput, output: str) -> bool:
        """Whether `output` is allowed, and may end."""
        grammar = self._compiler.grammar(wanted)
        for token_id in (*self._tokenizer.encode(output), 2):
            if not grammar.allowed_tokens()[token_id]:
                return False
            grammar.accept(token_id)
        return True

    def write(self, wanted: StructuredOutput, seed: int) -> str:
        """Tokens at random until the end."""
        grammar, chance, written = self._compiler.grammar(wanted), random.Random(seed), list[int]()
        while not grammar.is_finished:
            allowed = [token_id for token_id, each in enumerate(grammar.allowed_tokens()) if each]
            token_id = chance.choice(allowed)
            grammar.accept(token_id)
            if token_id == 2:
                break
            written.append(token_id)
        return self._tokenizer.decode(written, skip_special_tokens=False)


@pytest.fixture(scope="module")
def model(text: str) -> Model:
    return Model(text)


@pytest.fixture(scope="module")
def allows(model: Model) -> Callable[[StructuredOutput, str], bool]:
    return model.can_write


def grammar_of(formats: OutputFormats, wish: CallWish, *, is_thinking: bool = False, **params: Any) -> Any:
    given = SamplingParams(9, **params)
    output = formats.of(wish, is_thinking=is_thinking, separates=True, wanted=given.structured_output)
    return formats.constrained(given, wish, output).structured_output


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_is_seen_in_the_template_or_set(new_formats: NewFormats, name: str) -> None:
    wish = CallWish((WEATHER,))
    if name == "none":
        with pytest.raises(InvalidRequestError, match=r"model\.tool_call_format") as caught:
            new_formats(TEMPLATES[name]).of(wish, is_thinking=False, separates=True)
        assert (caught.value.param, caught.value.code) == ("tools", "unsupported_field")
    else:
        assert new_formats(TEMPLATES[name]).of(wish, is_thinking=False, separates=True).calls == name
    set_so = new_formats(TEMPLATES[name], tool_call_format="hermes")
    assert set_so.of(wish, is_thinking=False, separates=True).calls == "hermes"
    assert new_formats(TEMPLATES[name]).of(CallWish(), is_thinking=False, separates=True).calls == "none"


def test_thoughts_are_seen_in_the_template_or_set(new_formats: NewFormats) -> None:
    thinking, plain = new_formats("<think>{{ messages }}</think>"), new_formats("{{ messages }}")
    states = [
        formats.of(CallWish(), is_thinking=is_thinking, separates=separates).thoughts
        for formats in (thinking, plain)
        for is_thinking, separates in ((False, True), (True, True), (True, False))
    ]
    assert states == ["possible", "open", "none", "none", "none", "none"]
    set_so = new_formats("{{ messages }}", reasoning_format="think")
    assert set_so.of(CallWish(), is_thinking=False, separates=True).thoughts == "possible"


HERMES_CALL = f"<tool_call>\n{CALL}\n</tool_call>"
TIME_CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("wish", "allowed", "refused"),
    [
        (
            CallWish((WEATHER, TIME)),
            [
                *("Hello <tool", HERMES_CALL, f"{TIME_CALL}\nDone."),
                f"I look.\n{HERMES_CALL}\n{TIME_CALL}",
            ],
            [HERMES_CALL.replace('"Paris"', "5"), HERMES_CALL.replace("weather", "x"), "<tool_call>x",
             HERMES_CALL.removesuffix("</tool_call>"), f"a {HERMES_CALL} <tool_call>"],
        ),
        (CallWish((WEATHER, TIME), parallel=False), ["Hi", HERMES_CALL], [f"{HERMES_CALL}\n{TIME_CALL}"]),
        (
            CallWish((WEATHER, TIME), required=True),
            [HERMES_CALL, f"{HERMES_CALL}\n{TIME_CALL}"],
            ["Hello", f"I look.\n{HERMES_CALL}", ""],
        ),
        (
            CallWish((TIME,), required=True, parallel=False),
            [TIME_CALL],
            [HERMES_CALL, f"{TIME_CALL}{TIME_CALL}"],
        ),
    ],
)  # fmt: skip
def test_hermes_calls_are_kept_to_the_tools(
    new_formats: NewFormats,
    allows: Callable[[StructuredOutput, str], bool],
    wish: CallWish,
    allowed: list[str],
    refused: list[str],
) -> None:
    grammar = grammar_of(new_formats(TEMPLATES["hermes"]), wish)
    assert [output for output in allowed if not allows(grammar, output)] == []
    assert [output for output in refused if allows(grammar, output)] == []


def test_llama_calls_are_kept_to_the_tools(
    new_formats: NewFormats, allows: Callable[[StructuredOutput, str], bool]
) -> None:
    formats = new_formats(TEMPLATES["llama_json"])
    free = grammar_of(formats, CallWish((WEATHER, TIME)))
    for output in ("Hello", LLAMA_CALL, f"{LLAMA_CALL}; {LLAMA_CALL}", '{"city": "Paris"}'):
        assert allows(free, output), output
    for output in ('{"name": "nobody"}', f"{LLAMA_CALL} and so on", LLAMA_CALL.replace('"Paris"', "5")):
        assert not allows(free, output), output
    required = grammar_of(formats, CallWish((WEATHER,), required=True))
    assert allows(required, LLAMA_CALL)
    assert not allows(required, "Hello")


def test_mistral_calls_are_kept_to_the_tools(
    new_formats: NewFormats, allows: Callable[[StructuredOutput, str], bool]
) -> None:
    """Here the mark is a text; where the tokenizer has it as a special token, that stands in the grammar."""
    formats = new_formats(TEMPLATES["mistral"])
    free = grammar_of(formats, CallWish((WEATHER,)))
    for output in ("Hello [T", f"[TOOL_CALLS][{CALL}]", f"Hi [TOOL_CALLS][{CALL}, {CALL}]"):
        assert allows(free, output), output
    for output in ("[TOOL_CALLS]x", f"[TOOL_CALLS][{CALL}"):
        assert not allows(free, output), output
    required = grammar_of(formats, CallWish((WEATHER,), required=True))
    assert allows(required, f"[TOOL_CALLS][{CALL}]")
    assert not allows(required, "Hello")


CITY = {"enum": ["Paris", "London"]}
BOUNDED = Tool(
    "get_weather",
    {"properties": {"city": CITY, "days": {"enum": [1, 2]}}, "required": ["city"]}
    | {"additionalProperties": False},
)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "llama_json", "llama_pythonic", "mistral"])
def test_what_a_model_writes_at_random_is_the_call_that_was_required(
    new_formats: NewFormats, model: Model, name: str, seed: int
) -> None:
    formats, wish = new_formats(TEMPLATES[name]), CallWish((BOUNDED,), required=True, parallel=False)
    output = formats.of(wish, is_thinking=False, separates=True)
    parser = output.parser()
    written = model.write(grammar_of(formats, wish), seed)
    parts = [*parser.push(written), *parser.flush()]
    assert [part for part in parts if isinstance(part, CallStart)] == [CallStart(0, "get_weather")]
    assert [part for part in parts if isinstance(part, Text)] == []
    arguments = json.loads("".join(part.text for part in parts if isinstance(part, CallArguments)))
    assert arguments["city"] in CITY["enum"]
    assert arguments.keys() <= {"city", "days"}


def test_thoughts_come_before_calls_that_are_required(
    new_formats: NewFormats, allows: Callable[[StructuredOutput, str], bool]
) -> None:
    formats = new_formats(TEMPLATES["hermes"] + "<think>")
    wish = CallWish((WEATHER,), required=True)
    possible = grammar_of(formats, wish)
    for output in (HERMES_CALL, f"<think>\nHm, <b>\n</think>\n\n{HERMES_CALL}"):
        assert allows(possible, output), output
    opened = grammar_of(formats, wish, is_thinking=True)
    assert allows(opened, f"Hm <tool_call></think>\n{HERMES_CALL}")
    assert not allows(opened, HERMES_CALL)
    assert not allows(possible, "<think>Hm</think>Hello")


def test_an_answer_by_a_schema_may_stand_in_place_of_calls(
    new_formats: NewFormats, allows: Callable[[StructuredOutput, str], bool]
) -> None:
    formats = new_formats(TEMPLATES["hermes"])
    schema = StructuredOutput("json_schema", '{"type": "object", "properties": {"a": {}}}', "response_format")
    grammar = grammar_of(formats, CallWish((WEATHER,)), structured_output=schema)
    for output in ('{"a": 1}', HERMES_CALL):
        assert allows(grammar, output), output
    assert not allows(grammar, "Hello")
    with pytest.raises(InvalidRequestError, match="beside tools only JSON"):
        grammar_of(formats, CallWish((WEATHER,)), structured_output=StructuredOutput("regex", "a", "regex"))


def test_json_by_a_schema_comes_after_thoughts_that_the_prompt_has_begun(
    new_formats: NewFormats, allows: Callable[[StructuredOutput, str], bool]
) -> None:
    formats = new_formats("<think>")
    schema = StructuredOutput("json_schema", '{"type": "object"}', "response_format")
    opened = grammar_of(formats, CallWish(), is_thinking=True, structured_output=schema)
    assert allows(opened, 'Hm, {"b": 1}?\n</think>\n\n{"a": 1}')
    assert not allows(opened, '{"a": 1}')
    assert grammar_of(formats, CallWish(), structured_output=schema) == schema
    regex = StructuredOutput("regex", "a", "regex")
    output = formats.of(CallWish(), is_thinking=True, separates=True, wanted=regex)
    assert output.thoughts == "none"


def test_very_large_schemas_are_left_out(
    new_formats: NewFormats, allows: Callable[[StructuredOutput, str], bool]
) -> None:
    large = {"type": "object", "properties": {f"p{n}": {"description": "x" * 100} for n in range(1000)}}
    formats = new_formats(TEMPLATES["hermes"])
    grammar = grammar_of(formats, CallWish((Tool("get_weather", large), TIME)))
    assert allows(grammar, f"{HERMES_CALL}{TIME_CALL}")
    assert not allows(grammar, HERMES_CALL.replace("get_weather", "nobody"))
    with pytest.raises(InvalidRequestError, match="at most 65536"):
        grammar_of(formats, CallWish((Tool("get_weather", large, strict=True),)))


def test_a_strict_tool_is_refused_where_its_schema_cant_be_enforced(
    new_formats: NewFormats, allows: Callable[[StructuredOutput, str], bool]
) -> None:
    strict = Tool(WEATHER.name, WEATHER.parameters, strict=True)
    grammar = grammar_of(new_formats(TEMPLATES["hermes"]), CallWish((strict,)))
    with pytest.raises(InvalidRequestError, match="uniqueItems") as caught:
        allows(grammar, HERMES_CALL)
    assert caught.value.param == "tools"


def test_what_cant_be_constrained_is_free(new_formats: NewFormats) -> None:
    assert grammar_of(new_formats(TEMPLATES["hermes"], constrains=False), CallWish((WEATHER,))) is None
    required = grammar_of(
        new_formats(TEMPLATES["hermes"], constrains=False), CallWish((TIME,), required=True)
    )
    assert required is not None


def test_python_calls_are_kept_to_the_tools(
    new_formats: NewFormats, allows: Callable[[StructuredOutput, str], bool]
) -> None:
    many = Tool(
        "f",
        {
            "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"$ref": "#/$defs/C"}},
            "required": ["b"],
            "$defs": {"C": {"enum": ["x", None]}},
        },
    )
    formats = new_formats(TEMPLATES["llama_pythonic"])
    free = grammar_of(formats, CallWish((many, TIME)))
    for output in (
        *("Hello [1]", "[1, 2]", "[get_time()]", "[f(b=true)]", '[f(a=1, b=false, c="x"), get_time()]'),
        *("[f(b=true, c=null)]", "[get_time(), get_time()]"),
    ):
        assert allows(free, output), output
    for output in ("[f()]", "[f(a=1)]", '[f(b="x")]', "[f(c=null, b=true)]", "[f(b=true", "[get_time()] and"):
        assert not allows(free, output), output
    required = grammar_of(formats, CallWish((TIME,), required=True, parallel=False))
    assert allows(required, "[get_time()]")
    for output in ("Hello", "[get_time(), get_time()]", "[f(b=true)]"):
        assert not allows(required, output), output


def coder(name: str, *parameters: str) -> str:
    """A call as Qwen3-Coder writes it."""
    written = "".join(f"<parameter={each}\n</parameter>\n" for each in parameters)
    return f"<tool_call>\n<function={name}>\n{written}</function>\n</tool_call>"


def test_coder_calls_are_kept_to_the_tools(
    new_formats: NewFormats, allows: Callable[[StructuredOutput, str], bool]
) -> None:
    many = Tool(
        "f",
        {
            "properties": {
                "a": {"type": "integer"},
                "b": {"type": "string"},
                "c": {"$ref": "#/$defs/C"},
                "d": {"anyOf": [{"type": "array", "items": {"type": "boolean"}}]},
            },
            "required": ["b"],
            "$defs": {"C": {"enum": ["x y", None]}},
        },
    )
    formats = new_formats(TEMPLATES["qwen3_coder"])
    free = grammar_of(formats, CallWish((many, TIME)))
    b = 'b>\nany <text>\n"a"\n'
    for output in (
        *("Hello <tool", coder("get_time"), coder("get_time", "x>\n1", "y>\n2")),
        *(coder("f", b), f"I look.\n{coder('f', 'a>' + chr(10) + '5', b)}\n{coder('get_time')}\nDone."),
        *(coder("f", b, "c>\nx y"), coder("f", b, "c>\nnull"), coder("f", b, "d>\n[true, false]")),
    ):
        assert allows(free, output), output
    for output in (
        *(
            coder("f"),
            coder("g", b),
            coder("f", "a>\nfive", b),
            coder("f", b, "c>\nz"),
            coder("f", b, "e>\n1"),
        ),
        *(coder("f", b, "a>\n5"), coder("f", b).removesuffix("</tool_call>"), coder("f", b, "d>\n[1]")),
    ):
        assert not allows(free, output), output
    required = grammar_of(formats, CallWish((TIME,), required=True, parallel=False))
    assert allows(required, coder("get_time"))
    for output in ("Hello", coder("get_time") * 2, coder("f", b)):
        assert not allows(required, output), output


def test_marks_that_are_special_tokens_are_shown_to_the_parser(text: str) -> None:
    marked = tokenizers.Tokenizer.from_str(text)
    marked.add_special_tokens(["[TOOL_CALLS]", "[ARGS]"])
    wish = CallWish((WEATHER,))
    for template, call in (
        (TEMPLATES["mistral"], f"[TOOL_CALLS][{CALL}]"),
        (TEMPLATES["mistral"] + "[ARGS]", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'),
    ):
        tokenizer = Tokenizer(marked, eos_token_ids=[2], chat_template=ChatTemplate(template, {}))
        formats = OutputFormats(tokenizer, ModelConfig(), constrains=True)
        output = formats.of(wish, is_thinking=False, separates=True)
        params = formats.constrained(SamplingParams(9), wish, output)
        assert not params.skip_special_tokens
        assert params.structured_output is not None
        grammar = GrammarCompiler(marked.to_str(), [2]).grammar(params.structured_output)
        for token_id in (*tokenizer.encode(f"Hi {call}"), 2):
            assert grammar.allowed_tokens()[token_id], tokenizer.spell(token_id)
            grammar.accept(token_id)
        stream = tokenizer.text_stream(skip_special_tokens=False)
        shown = "".join([*map(stream.push, (*tokenizer.encode(call), 2)), stream.flush()])
        assert shown == call
        parts = output.parser().push(shown)
        assert json.loads("".join(part.text for part in parts if hasattr(part, "text"))) == {"city": "Paris"}
