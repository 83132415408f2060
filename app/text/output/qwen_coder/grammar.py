"""The grammar that keeps calls to the tools; see `app.text.output.grammars`.

Parameters come in the order of the schema's properties; those that aren't required may be missing. A tool
without properties takes any. Of a string its values are enforced (`enum`, `const`), and nothing else: it is
any text up to the mark that ends it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from app.text.output.grammars import (
    ThoughtState,
    Tool,
    answer_item,
    arguments_schema,
    json_item,
    whole_grammar,
)
from app.text.output.qwen_coder.parser import CLOSE, END_FUNCTION, END_PARAMETER, FUNCTION, OPEN, PARAMETER
from app.text.output.qwen_coder.values import kind_of, properties_of, values_of


def qwen_coder_grammar(
    tools: Sequence[Tool],
    *,
    required: bool,
    parallel: bool,
    thoughts: ThoughtState,
    answer: str | None = None,
) -> str:
    """The grammar of an output that may call `tools`, or must; for the arguments see `calls_grammar`."""
    free = not required and answer is None
    begun = f'open[lazy]: TEXT "{OPEN}"' if free else f'open: "{OPEN}"'
    rules = [
        begun,
        f'text_end[lazy]: TEXT "\\n{END_PARAMETER}"',
        f"one: {' | '.join(f'one_{place}' for place in range(len(tools)))}",
    ]
    for place, tool in enumerate(tools):
        rules.append(
            f"one_{place}: {_quoted(f'{FUNCTION}{tool.name}>')} NL first_{place} {_quoted(END_FUNCTION)}"
        )
        rules += _parameters(place, tool)
    one = f'open NL one NL "{CLOSE}"'
    calls = f"({one} WS)+" if parallel and not free else f"({one})+ tail" if parallel else f"{one} WS"
    rules.append("NL: /\\n?/")
    return whole_grammar(calls if required else f"{calls} | {answer_item(answer)}", rules, thoughts)


def _parameters(place: int, tool: Tool) -> Iterator[str]:
    """Rules of a tool's parameters, of which `first_…` has all."""
    schema = arguments_schema(tool)
    properties = properties_of(schema)
    if not properties:
        yield f"first_{place}: (any_{place} NL)*"
        yield f'any_{place}: "{PARAMETER}" /[A-Za-z_][A-Za-z0-9_.\\-]*/ ">\\n" text_end'
        return
    shared: dict[str, Any] = {
        name: schema[name] for name in ("$defs", "definitions", "x-guidance") if name in schema
    }
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    items = []
    for number, (name, value) in enumerate(properties.items()):
        is_required = name in required
        items.append(f"arg_{place}_{number}" if is_required else f"(arg_{place}_{number})?")
        mark = _quoted(f"{PARAMETER}{name}>\n")
        yield f"arg_{place}_{number}: {mark} {_value(value, schema, shared)} NL"
    yield f"first_{place}: {' '.join(items)}"


def _value(schema: Any, whole: dict[str, Any], shared: dict[str, Any]) -> str:
    if kind_of(schema, whole) == "json":
        typed = {**schema, **shared} if isinstance(schema, dict) else schema
        return f"{json_item(json.dumps(typed))} NL {_quoted(END_PARAMETER)}"
    given = values_of(schema, whole)
    if given:
        options = [each if isinstance(each, str) else json.dumps(each) for each in given]
        return f"({' | '.join(map(_quoted, options))}) NL {_quoted(END_PARAMETER)}"
    return "text_end"


def _quoted(text: str) -> str:
    """`text` as Lark writes it."""
    return json.dumps(text)
