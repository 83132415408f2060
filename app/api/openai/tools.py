"""The tools that a chat offers to the model, and which of them it must call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.api.fields import TOOL, Fields
from app.api.request_model import RequestModel
from app.errors import InvalidRequestError, shown
from app.text.output.formats import CallWish
from app.text.output.grammars import Tool
from app.validation import one_of

MAX_TOOLS = 512


class FunctionSpec(RequestModel):
    """A function: `parameters` is the JSON schema of its arguments, which `strict` ones always keep to."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class ToolSpec(RequestModel):
    """A tool, which is a function."""

    unserved: ClassVar[Fields] = TOOL

    type: Literal["function"]
    function: FunctionSpec

    def as_template_takes_it(self) -> dict[str, Any]:
        """The tool as chat templates write it."""
        spec = self.function
        given = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
        return {
            "type": "function",
            "function": {name: each for name, each in given.items() if each is not None},
        }


class FunctionName(RequestModel):
    """Names a function."""

    name: str


class NamedTool(RequestModel):
    """Names a tool."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(RequestModel):
    """Which of the tools may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class ChosenTools(RequestModel):
    """The one tool that must be called, or fewer tools than the prompt has, which so stays the same."""

    type: Literal["function", "allowed_tools"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None

    @model_validator(mode="after")
    def _has_what_its_type_says(self) -> Self:
        for name, given in (("function", self.function), ("allowed_tools", self.allowed_tools)):
            if (given is not None) != (self.type == name):
                field = f"tool_choice.{name}"
                needed = "required" if self.type == name else f"goes with type {name!r}"
                raise InvalidRequestError(f"{field}: {needed}", param=field)
        return self


ToolChoice = Literal["none", "auto", "required"] | ChosenTools
Tools = Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)]


def wish_of(tools: list[ToolSpec], choice: ToolChoice | None, *, parallel: bool) -> CallWish:
    """The calls that a request allows or wants.

    Raises:
        InvalidRequestError: it wants a call, and there is no such tool.
    """
    offered = tuple(
        Tool(each.function.name, each.function.parameters, each.function.strict) for each in tools
    )
    match choice:
        case None | "auto":
            return CallWish(offered, parallel=parallel)
        case "none":
            return CallWish()
        case "required":
            _check(bool(offered), "tool_choice", "'required'", "tools are needed")
            return CallWish(offered, required=True, parallel=parallel)
    if choice.function is not None:
        chosen = _named(offered, choice.function.name, "tool_choice")
        return CallWish((chosen,), required=True, parallel=False)
    allowed = choice.allowed_tools
    assert allowed is not None, "a choice has what its type says"
    path = "tool_choice.allowed_tools.tools"
    names = [named.function.name for named in allowed.tools]
    by_name = {name: _named(offered, name, f"{path}.{place}") for place, name in enumerate(names)}
    return CallWish(tuple(by_name.values()), required=allowed.mode == "required", parallel=parallel)


def _named(offered: Sequence[Tool], name: str, path: str) -> Tool:
    known = one_of(dict.fromkeys(tool.name for tool in offered)) if offered else "none, as there are no tools"
    chosen = next((tool for tool in offered if tool.name == name), None)
    if chosen is None:
        field = f"{path}.function.name"
        raise InvalidRequestError(f"{field} = {shown(name)}: allowed: {known}", param=field)
    return chosen


def _check(ok: bool, field: str, value: str, allowed: str) -> None:
    if not ok:
        raise InvalidRequestError(f"{field} = {value}: {allowed}", param=field)
