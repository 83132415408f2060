"""Outputs as models write them, in each format, cut at every place: the parts are the same."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from app.text.output.hermes import HermesParser
from app.text.output.llama import LlamaParser
from app.text.output.mistral import MistralParser
from app.text.output.parts import CallArguments, CallStart, OutputParser, Part, PlainParser, Text, Thought
from app.text.output.pythonic import PythonicParser
from app.text.output.qwen_coder.parser import QwenCoderParser
from app.text.output.qwen_coder.values import Kinds
from app.text.output.reasoning import ThoughtParser

NAMES = frozenset({"get_weather", "get_time", "bash"})
PARIS = '{"city": "Paris", "unit": "celsius"}'
CODE = json.dumps(
    {"command": 'echo "a, {b}: [c]\\" </tool_call>" && cat <<EOF\n}\nEOF', "deep": {"a": [{"b": 1}]}}
)


@dataclass(frozen=True)
class Said:
    """What an output says in all."""

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    thought: str = ""


def said(parts: Sequence[Part]) -> Said:
    calls: dict[int, list[str]] = {}
    for part in parts:
        if isinstance(part, CallStart):
            assert part.index == len(calls), "calls are numbered in their order"
            calls[part.index] = [part.name, ""]
        elif isinstance(part, CallArguments):
            calls[part.index][1] += part.text
    return Said(
        "".join(part.text for part in parts if isinstance(part, Text)),
        tuple((name, arguments) for name, arguments in calls.values()),
        "".join(part.text for part in parts if isinstance(part, Thought)),
    )


def parse(new_parser: Callable[[], OutputParser], pieces: Sequence[str]) -> Said:
    parser = new_parser()
    parts = [part for piece in pieces for part in parser.push(piece)]
    return said([*parts, *parser.flush()])


def weather(arguments: str = PARIS) -> tuple[str, str]:
    return "get_weather", arguments


HERMES = [
    ("Hello there.\n", Said("Hello there.\n")),
    (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>',
        Said("", (weather(),)),
    ),
    (
        f'I look.\n\n<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>\n',
        Said("I look.", (weather(), ("get_time", "{}"))),
    ),
    (
        f'<tool_call>{{"name":"bash","arguments":{CODE}}}</tool_call>Done.',
        Said("Done.", (("bash", CODE),)),
    ),
    # Arguments before the name, as a string of JSON, and with white space around them.
    (f'<tool_call>{{"arguments": {PARIS}, "name": "get_weather"}}</tool_call>', Said("", (weather(),))),
    (
        f'<tool_call>{{"name": "get_weather", "arguments": {json.dumps(PARIS)}}}</tool_call>',
        Said("", (weather(),)),
    ),
    (
        f'<tool_call> {{ "name" : "get_weather" , "arguments" : {PARIS} }} </tool_call>',
        Said("", (weather(),)),
    ),
    ('<tool_call>{"id": [1, {"name": "x"}], "name": "get_time", "arguments": {}}</tool_call>',
     Said("", (("get_time", "{}"),))),
    # The end mark is missing, or everything after a part of the arguments.
    (f'<tool_call>{{"name": "get_weather", "arguments": {PARIS}}}', Said("", (weather(),))),
    ('<tool_call>{"name": "get_weather", "arguments": {"city": "Par', Said("", (weather('{"city": "Par'),))),
    # What is no call is text.
    ("a < b and <tool b", Said("a < b and <tool b")),
    ("<tool_call>none</tool_call>", Said("<tool_call>none</tool_call>")),
    ('<tool_call>{"nam', Said('<tool_call>{"nam')),
    ('<tool_call>{"a": 1}', Said('<tool_call>{"a": 1}')),
]  # fmt: skip
LLAMA = [
    ("Hello {name}.", Said("Hello {name}.")),
    (f'{{"name": "get_weather", "parameters": {PARIS}}}', Said("", (weather(),))),
    (f'\n<|python_tag|>{{"name": "get_weather", "parameters": {PARIS}}}', Said("", (weather(),))),
    (
        f'{{"name": "get_weather", "parameters": {PARIS}}}; {{"name": "bash", "parameters": {CODE}}}',
        Said("", (weather(), ("bash", CODE))),
    ),
    (f'{{"type": "function", "name": "get_weather", "parameters": {PARIS}}}', Said("", (weather(),))),
    ('{"name": "get_weather", "parameters": {"city": "Par', Said("", (weather('{"city": "Par'),))),
    ('{"name": "nobody", "parameters": {}}', Said('{"name": "nobody", "parameters": {}}')),
    ('{"city": "Paris"} is JSON', Said('{"city": "Paris"} is JSON')),
    ('{"cit', Said('{"cit')),
    ("<|python_tag|>print(1)", Said("print(1)")),
    (" \n", Said(" \n")),
]
PYTHONIC = [
    ("Hello [1] there.", Said("Hello [1] there.")),
    ('[get_weather(city="Paris", unit="celsius")]', Said("", (weather(),))),
    ('<|python_start|>[get_weather(city="Paris", unit="celsius")]<|python_end|>', Said("", (weather(),))),
    (
        "[get_weather(city='Paris', unit='celsius'), get_time(), "
        'bash(a=[1, {\'b\': None}], c=true, d="]\\")")]',
        Said(
            "",
            (
                weather(),
                ("get_time", "{}"),
                ("bash", '{"a": [1, {"b": null}], "c": true, "d": "]\\")"}'),
            ),
        ),
    ),
    ("[get_time()]\nDone.", Said("Done.", (("get_time", "{}"),))),
    ("[nobody()]", Said("[nobody()]")),
    ("[get_time(1)]", Said("[get_time(1)]")),
    ("[get_time(a=open('x'))]", Said("[get_time(a=open('x'))]")),
    ("[get_time(", Said("[get_time(")),
    ("[1, 2]", Said("[1, 2]")),
    ("[]", Said("[]")),
    ("[", Said("[")),
]
KINDS: Kinds = {("get_weather", "days"): "json", ("get_weather", "hint"): "text or null"}


def coder(name: str, **values: str) -> str:
    """A call as Qwen3-Coder writes it."""
    written = "".join(f"<parameter={each}>\n{value}\n</parameter>\n" for each, value in values.items())
    return f"<tool_call>\n<function={name}>\n{written}</function>\n</tool_call>"


def coded(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)


SCRIPT = 'cat <<EOF\n  "a" </param\n\n<function=x> \\n\nEOF\n'
QWEN_CODER = [
    ("Hello <there>.\n", Said("Hello <there>.\n")),
    (coder("get_weather", city="Paris"), Said("", (weather(coded(city="Paris")),))),
    (
        f"I look.\n\n{coder('get_weather', city='Zwölf 🙂', days='[1, 2]')}\n{coder('get_time')}\nDone.",
        Said("I look.\nDone.", (weather(coded(city="Zwölf 🙂", days=[1, 2])), ("get_time", "{}"))),
    ),
    (coder("bash", command=SCRIPT, n="5"), Said("", (("bash", coded(command=SCRIPT, n="5")),))),
    (coder("get_weather", hint="null", days="five"), Said("", (weather(coded(hint=None, days="five")),))),
    (coder("get_weather", hint="nullable", days="{}"), Said("", (weather(coded(hint="nullable", days={})),))),
    # On one line, with white space between the marks, without the end marks.
    (
        "<tool_call> <function=get_weather> <parameter=city>Paris</parameter> </function> </tool_call>",
        Said("", (weather(coded(city="Paris")),)),
    ),
    ("<tool_call><function=get_time></function>", Said("", (("get_time", "{}"),))),
    ("<tool_call><function=get_time></tool_call>Done.", Said("Done.", (("get_time", "{}"),))),
    ("<tool_call>\n<function=get_weather>\n<parameter=city>\nPar",
     Said("", (weather('{"city": "Par'),))),
    ("<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</para",
     Said("", (weather('{"city": "Paris\\n</para'),))),
    ("<tool_call>\n<function=get_weather>\n<parameter=days>\n[1, ", Said("", (weather('{"days": [1,'),))),
    # What is no call is text.
    ("<tool_call>none</tool_call>", Said("<tool_call>none</tool_call>")),
    ("<tool_call>\n<function=get\nx>", Said("<tool_call>\n<function=get\nx>")),
    ("<tool_call>\n<functio", Said("<tool_call>\n<functio")),
    ("a <tool_cal", Said("a <tool_cal")),
]  # fmt: skip
MISTRAL = [
    ("Hello [TOOL] there.", Said("Hello [TOOL] there.")),
    (f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {PARIS}}}]', Said("", (weather(),))),
    (
        f'I look. [TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS}, "id": "abcdefghi"}}, '
        f'{{"name": "bash", "arguments": {CODE}}}]',
        Said("I look.", (weather(), ("bash", CODE))),
    ),
    (f"[TOOL_CALLS]get_weather[ARGS]{PARIS}", Said("", (weather(),))),
    (f"[TOOL_CALLS]get_weather{PARIS}", Said("", (weather(),))),
    (f"[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{PARIS}", Said("", (weather(),))),
    (
        f"I look.[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]bash[ARGS]{CODE}",
        Said("I look.", (weather(), ("bash", CODE))),
    ),
    ("[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Par", Said("", (weather('{"city": "Par'),))),
]  # fmt: skip
PARSERS: dict[str, tuple[Callable[[], OutputParser], list[tuple[str, Said]]]] = {
    "hermes": (HermesParser, HERMES),
    "llama": (lambda: LlamaParser(NAMES), LLAMA),
    "pythonic": (lambda: PythonicParser(NAMES), PYTHONIC),
    "qwen_coder": (lambda: QwenCoderParser(KINDS), QWEN_CODER),
    "mistral": (MistralParser, MISTRAL),
}
CASES = [(name, output, expected) for name, (_, cases) in PARSERS.items() for output, expected in cases]


@pytest.mark.parametrize(("name", "output", "expected"), CASES)
def test_an_output_says_the_same_however_it_is_cut(name: str, output: str, expected: Said) -> None:
    new_parser = PARSERS[name][0]
    assert parse(new_parser, [output]) == expected
    assert parse(new_parser, list(output)) == expected
    for place in range(1, len(output)):
        assert parse(new_parser, [output[:place], output[place:]]) == expected, place
    chance = random.Random(output)
    for _ in range(20):
        places = sorted(chance.choices(range(len(output) + 1), k=5))
        pieces = [output[start:end] for start, end in itertools.pairwise([0, *places, len(output)])]
        assert parse(new_parser, pieces) == expected, places


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("<think>\nHm, <b>.\n</think>\n\nFour.", Said("Four.", thought="\nHm, <b>.\n")),
        ("<think></think>Four.", Said("Four.")),
        ("<think>Hm", Said(thought="Hm")),
        ("<think>Hm</thi", Said(thought="Hm</thi")),
        (
            f'<think>Hm <tool_call></think>\n<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}'
            "\n</tool_call>",
            Said("", (weather(),), "Hm <tool_call>"),
        ),
    ],
)  # fmt: skip
def test_thoughts_are_split_from_what_is_said(output: str, expected: Said, is_open: bool) -> None:
    output = output.removeprefix("<think>") if is_open else output
    for place in range(len(output) + 1):
        pieces = [output[:place], output[place:]]
        assert parse(lambda: ThoughtParser(HermesParser(), is_open=is_open), pieces) == expected


@pytest.mark.parametrize("output", ["Four.", "<thin", "a <think>b</think>", " \n", "", "<thing>"])
def test_an_output_without_thoughts_is_what_is_said(output: str) -> None:
    assert parse(lambda: ThoughtParser(PlainParser(), is_open=False), list(output)) == Said(output)


def test_arguments_come_while_they_are_written() -> None:
    parser = HermesParser()
    parser.push('<tool_call>{"name": "bash", "arguments": ')
    assert [parser.push(piece) for piece in ('{"a', '": 1, ', '"b": "}"', "}")] == [
        [CallArguments(0, '{"a')],
        [CallArguments(0, '": 1, ')],
        [CallArguments(0, '"b": "}"')],
        [CallArguments(0, "}")],
    ]


@pytest.mark.parametrize("name", PARSERS)
def test_a_long_call_takes_time_in_proportion(name: str) -> None:
    """Each of 10,000 pieces is looked at once; looking at all of them each time would take minutes."""
    text = "x" * 100_000
    outputs = {
        "hermes": f'<tool_call>{{"name": "bash", "arguments": {{"a": "{text}"}}}}</tool_call>',
        "llama": f'{{"name": "bash", "parameters": {{"a": "{text}"}}}}',
        "pythonic": f'[bash(a="{text}")]',
        "qwen_coder": coder("bash", a=text),
        "mistral": f'[TOOL_CALLS]bash[ARGS]{{"a": "{text}"}}',
    }
    output = outputs[name]
    pieces = [output[start : start + 10] for start in range(0, len(output), 10)]
    assert parse(PARSERS[name][0], pieces).calls == (("bash", json.dumps({"a": text})),)
