"""The tools that a chat offers to the model, and which of them it must call."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

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
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool
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
    name = choice.function.name
    chosen = tuple(tool for tool in offered if tool.name == name)[:1]
    known = one_of(dict.fromkeys(tool.name for tool in offered)) if offered else "none, as there are no tools"
    _check(bool(chosen), "tool_choice.function.name", shown(name), f"allowed: {known}")
    return CallWish(chosen, required=True, parallel=False)


def _check(ok: bool, field: str, value: str, allowed: str) -> None:
    if not ok:
        raise InvalidRequestError(f"{field} = {value}: {allowed}", param=field)
