"""The grammar of calls that are written as Python, `[weather(city="Paris"), time()]`; see `grammars`.

Arguments come in the order of the schema's properties; those that aren't required may be missing. Values are
JSON, whose true, false and null the parser reads too. A property whose name Python can't write is left out.
"""

from __future__ import annotations

import json
import keyword
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


def python_grammar(
    tools: Sequence[Tool],
    *,
    required: bool,
    parallel: bool,
    thoughts: ThoughtState,
    answer: str | None = None,
) -> str:
    """The grammar of an output that may call `tools`, or must; for the arguments see `calls_grammar`."""
    lazy = "" if required or answer is not None else "[lazy]"
    rules = [f"one: {' | '.join(f'one_{place}' for place in range(len(tools)))}"]
    for place, tool in enumerate(tools):
        rules.append(f"open_{place}{lazy}: {json.dumps(f'[{tool.name}(')}")
        rules.append(f'one_{place}: {json.dumps(f"{tool.name}(")} first_{place}_0 ")"')
        rules += _arguments(place, tool)
    begun = " | ".join(f'open_{place} first_{place}_0 ")"' for place in range(len(tools)))
    more = '(", " one)*' if parallel else ""
    calls = f'({begun}) {more} "]"'
    return whole_grammar(calls if required else f"{calls} | {answer_item(answer)}", rules, thoughts)


def _arguments(place: int, tool: Tool) -> Iterator[str]:
    """Rules `first_…` of arguments before which there is none, and `rest_…` of those after one."""
    schema = arguments_schema(tool)
    properties: dict[str, Any] = schema.get("properties") or {}
    shared = {name: schema[name] for name in ("$defs", "definitions", "x-guidance") if name in schema}
    names = [name for name in properties if name.isidentifier() and not keyword.iskeyword(name)]
    for number, name in enumerate(names):
        value = properties[name]
        typed = json.dumps({**value, **shared} if isinstance(value, dict) else value)
        argument, after = f"arg_{place}_{number}", f"{place}_{number + 1}"
        yield f"{argument}: {json.dumps(f'{name}=')} {json_item(typed)}"
        if name in schema.get("required", ()):
            yield f"first_{place}_{number}: {argument} rest_{after}"
            yield f'rest_{place}_{number}: ", " {argument} rest_{after}'
        else:
            yield f"first_{place}_{number}: {argument} rest_{after} | first_{after}"
            yield f'rest_{place}_{number}: (", " {argument})? rest_{after}'
    yield f'first_{place}_{len(names)}: ""'
    yield f'rest_{place}_{len(names)}: ""'
