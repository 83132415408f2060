"""Grammars that keep a model's calls to what its parser reads and its tools take, in llguidance's Lark.

    auto       thought? ( text | text and calls )     free until the mark of a call has been written
    required   thought? calls

A tool's schema stands by itself (`%json`), as its references are its own, between the text around it.
Keywords that the library can't enforce are left out, but those of a `strict` tool are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.text.json_schema import without_annotations

ThoughtState = Literal["none", "possible", "open"]
"""Whether an output can begin with thoughts, or is in them from its first token."""

_TERMINALS = r"""
TEXT: /(.|\n)*/
WS: /[ \n]{0,4}/
"""


@dataclass(frozen=True)
class Tool:
    """A tool as a model may call it. `parameters`: the schema of its arguments; None takes any object."""

    name: str
    parameters: dict[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True)
class CallForm:
    """How a format writes calls, as pieces of a Lark grammar.

    Attributes:
        before, after: the text around a call's arguments; `{name}` is the tool's.
        joint: a Lark item between `before` and the arguments.
        mark: what begins the calls; as a text, or a special token as `<[id]>`.
        is_token: whether it is a special token.
        opening, closing: Lark items around all calls after one mark.
        separator: Lark items between them; None: every call has a mark of its own.
        text_before: whether a text may stand before the calls.
    """

    before: str
    after: str
    mark: str
    joint: str = ""
    is_token: bool = False
    opening: str = ""
    closing: str = ""
    separator: str | None = None
    text_before: bool = True


def calls_grammar(
    form: CallForm,
    tools: Sequence[Tool],
    *,
    required: bool,
    parallel: bool,
    thoughts: ThoughtState,
    answer: str | None = None,
) -> str:
    """The grammar of an output that may call `tools`, or must.

    Args:
        form: how calls are written.
        tools: at least one.
        required: whether there must be a call.
        parallel: whether there may be more than one.
        thoughts: what may stand before.
        answer: the JSON schema of an output without calls; None: any text.
    """
    free = not required and answer is None
    calls = _calls(form, parallel=parallel, free=free)
    body = calls if required else f"{calls} | {answer_item(answer)}"
    options = [f"one_{place}" for place in range(len(tools))]
    rules = [*_marks(form, free=free), f"one: {' | '.join(options)}"]
    rules += [f"{option}: {_one(form, tool)}" for option, tool in zip(options, tools, strict=True)]
    return whole_grammar(body, rules, thoughts)


def thoughtful_grammar(answer: str) -> str:
    """The grammar of JSON by the schema `answer`, after thoughts in which the output begins."""
    return whole_grammar(answer_item(answer), [], "open")


def whole_grammar(body: str, rules: Sequence[str], thoughts: ThoughtState) -> str:
    """The grammar of an output that is `body`, a Lark expression over `rules`, after its thoughts."""
    thought = {"none": "", "possible": "thought? WS ", "open": "thought WS "}[thoughts]
    opening = '"<think>" ' if thoughts == "possible" else ""
    marked = [] if thoughts == "none" else [f'thought[lazy]: {opening}TEXT "</think>"']
    return "\n".join([f"start: {thought}({body})", *marked, "tail: TEXT", *rules]) + _TERMINALS


def answer_item(schema: str | None) -> str:
    """An answer without calls: JSON by this schema; None: any text."""
    return "tail" if schema is None else json_item(schema)


def json_item(schema: str) -> str:
    """JSON by this schema, whose references are its own."""
    return f"%json {json.dumps(json.loads(without_annotations(schema)))}"


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments; what can't be enforced is left out unless it is strict."""
    schema: dict[str, Any] = {"type": "object", **(tool.parameters or {})}
    return schema if tool.strict else schema | {"x-guidance": {"lenient": True}}


def _calls(form: CallForm, *, parallel: bool, free: bool) -> str:
    """The rule of all calls; after them nothing follows but white space, or a free text."""
    if form.separator is None:
        one = f"open {form.opening} one {form.closing}"
        return f"({one} WS)+" if parallel and not free else f"({one})+ tail" if parallel else f"{one} WS"
    more = f"({form.separator} one)*" if parallel else ""
    return f"open {form.opening} one {more} {form.closing}"


def _marks(form: CallForm, *, free: bool) -> list[str]:
    """What begins calls: after any text where the output is free, else at once."""
    before = "TEXT " if free and form.text_before else ""
    if form.is_token:
        return [f"open: {before}{form.mark}"]
    return [f"open{'[lazy]' if free else ''}: {before}{json.dumps(form.mark)}"]


def _one(form: CallForm, tool: Tool) -> str:
    name = json.dumps(tool.name)[1:-1]
    before, after = form.before.replace("{name}", name), form.after
    arguments = json_item(json.dumps(arguments_schema(tool)))
    return " ".join(filter(None, [json.dumps(before), form.joint, arguments, after and json.dumps(after)]))
