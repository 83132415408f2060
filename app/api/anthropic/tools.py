"""The tools that a conversation offers to the model, and which of them it must call.

A tool with `defer_loading` isn't written into the beginning of the prompt. It can be called once a result has
referred to it, and is written there: so the cached prefix stays what it is.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from app.api.anthropic.blocks import Kind, type_in
from app.api.fields import ANTHROPIC_TOOL, Fields
from app.api.request_model import RequestModel
from app.errors import InvalidRequestError, shown
from app.text.output.formats import CallWish
from app.text.output.grammars import Tool
from app.validation import one_of

MAX_TOOLS = 512
_CUSTOM = {"custom": None}


class ToolSpec(RequestModel):
    """A tool of the client's own. Those that Anthropic's servers run, or its models know, are refused."""

    unserved: ClassVar[Fields] = ANTHROPIC_TOOL

    type: Literal["custom"] = "custom"
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool = False
    defer_loading: bool = False

    @classmethod
    def kind_of(cls, values: Mapping[str, Any], path: str) -> Kind:
        """See `RequestModel.kind_of`. The type of a client's own tool may be left out."""
        if values.get("type") is not None:
            type_in(values, path, _CUSTOM)
        return cls

    def as_template_takes_it(self) -> dict[str, Any]:
        """The tool as chat templates write it."""
        about = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **about, "parameters": self.input_schema}}

    def as_text(self) -> str:
        """The tool where something refers to it."""
        return json.dumps(self.as_template_takes_it(), ensure_ascii=False)


Tools = Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)]


class ToolChoice(RequestModel):
    """Which tools are called. `name`: of the one that must be, with the type `tool`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


def offered(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """The tools that a prompt begins with, as chat templates write them."""
    return [tool.as_template_takes_it() for tool in tools if not tool.defer_loading]


def wish_of(tools: Sequence[ToolSpec], choice: ToolChoice | None, found: Collection[str]) -> CallWish:
    """The calls that a request allows or wants.

    Args:
        tools: all of its tools.
        choice: its `tool_choice`.
        found: names of tools that its messages refer to.

    Raises:
        InvalidRequestError: it wants a call, and there is no such tool.
    """
    callable_now = (tool for tool in tools if not tool.defer_loading or tool.name in found)
    usable = tuple(Tool(tool.name, tool.input_schema, tool.strict) for tool in callable_now)
    if choice is None:
        return CallWish(usable)
    if choice.name is not None and choice.type != "tool":
        raise _wrong("tool_choice.name", choice.name, "goes with the type 'tool'")
    parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "auto":
            return CallWish(usable, parallel=parallel)
        case "none":
            return CallWish()
        case "any":
            if not usable:
                raise _wrong("tool_choice.type", "any", "tools are needed")
            return CallWish(usable, required=True, parallel=parallel)
    if choice.name is None:
        field = "tool_choice.name"
        raise InvalidRequestError(f"{field}: required", param=field, code="missing_field")
    named = tuple(tool for tool in usable if tool.name == choice.name)[:1]
    if not named:
        known = (
            one_of(dict.fromkeys(tool.name for tool in usable)) if usable else "none, as there are no tools"
        )
        raise _wrong("tool_choice.name", choice.name, f"allowed: {known}")
    return CallWish(named, required=True, parallel=False)


def _wrong(field: str, value: str, allowed: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field} = {shown(value)}: {allowed}", param=field)
