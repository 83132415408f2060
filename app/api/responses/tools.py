"""The tools that a response may call, and which of them it must.

The model sees each as a function. A custom tool's input is a function's only argument, a string. A tool in a
namespace has a name with the namespace before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.api.fields import INFORMS, RESPONSE_TOOL, Fields
from app.api.openai.tools import MAX_TOOLS
from app.api.request_model import RequestModel
from app.api.responses.items import joined_name
from app.errors import InvalidRequestError, shown
from app.text.output.formats import CallWish
from app.text.output.grammars import Tool
from app.validation import one_of

Name = Annotated[str, Field(min_length=1, max_length=256)]


@dataclass(frozen=True)
class Offer:
    """A tool as the model sees it, and as the client calls it.

    Attributes:
        name: for the model.
        own_name, namespace: the client's.
        description: for the model.
        parameters: the schema of its arguments; None takes any object.
        strict: whether arguments keep to all of it.
        is_custom: whether its input is a text.
    """

    name: str
    own_name: str
    namespace: str | None
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool = False
    is_custom: bool = False

    def as_template_takes_it(self) -> dict[str, Any]:
        """The tool as chat templates write it."""
        given = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {
            "type": "function",
            "function": {name: each for name, each in given.items() if each is not None},
        }


class ToolModel(RequestModel):
    """A tool, whose `type` says which of these models it is."""

    unserved: ClassVar[Fields] = RESPONSE_TOOL

    @classmethod
    def kind_of(cls, values: Mapping[str, Any], path: str) -> type[RequestModel]:
        """The model of the tool at `path`."""
        given = values.get("type")
        model = TOOL_MODELS.get(given) if isinstance(given, str) else None
        if model is None and isinstance(given, str) and given.startswith("web_search"):
            model = WebSearchTool
        if model is not None:
            return model
        field = f"{path}type"
        if given is None:
            raise InvalidRequestError(f"{field}: required", param=field, code="missing_field")
        message = f"{field} = {shown(given)}: this server runs no tools; allowed: {one_of(TOOL_MODELS)}"
        raise InvalidRequestError(message, param=field, code="unsupported_field")

    def offers(self, namespace: str | None = None) -> Iterator[Offer]:
        """What it offers to the model; `namespace` is the one that it is in."""
        raise NotImplementedError


class FunctionTool(ToolModel):
    """A function: `parameters` is the JSON schema of its arguments, which `strict` ones always keep to."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False

    def offers(self, namespace: str | None = None) -> Iterator[Offer]:
        """See `ToolModel`."""
        name = joined_name(namespace, self.name)
        yield Offer(name, self.name, namespace, self.description, self.parameters, self.strict)


class InputFormat(RequestModel):
    """What a custom tool's input must be: any text, or a match of a whole regex, in Rust's syntax."""

    type: Literal["text", "grammar"]
    syntax: Literal["regex"] | None = None
    definition: str | None = None

    @model_validator(mode="after")
    def _a_grammar_is_given(self) -> Self:
        if self.type == "grammar" and not (self.syntax and self.definition):
            message = "a grammar needs syntax: 'regex' and a definition"
            raise ValueError(message)
        return self


class CustomTool(ToolModel):
    """A tool that takes a text."""

    type: Literal["custom"]
    name: Name
    description: str | None = None
    format: InputFormat | None = None

    def offers(self, namespace: str | None = None) -> Iterator[Offer]:
        """See `ToolModel`."""
        pattern = None if self.format is None else self.format.definition
        wanted: dict[str, Any] = {"type": "string"}
        if pattern is not None:
            wanted["pattern"] = f"^(?:{pattern})$"
        parameters = {
            "type": "object",
            "properties": {"input": wanted},
            "required": ["input"],
            "additionalProperties": False,
        }
        name = joined_name(namespace, self.name)
        is_strict = pattern is not None
        yield Offer(name, self.name, namespace, self.description, parameters, is_strict, is_custom=True)


class NamespaceTool(ToolModel):
    """Tools under a common name."""

    type: Literal["namespace"]
    name: Name
    description: str | None = None
    tools: list[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]]

    def offers(self, namespace: str | None = None) -> Iterator[Offer]:
        """See `ToolModel`."""
        for tool in self.tools:
            yield from tool.offers(self.name)


class WebSearchTool(ToolModel):
    """A tool of OpenAI's servers, which Codex always offers. Only they have it, so it isn't offered here."""

    type: Literal["web_search"]

    @classmethod
    def unwrapped(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Its type alone, of which there are several."""
        return {"type": "web_search"}

    def offers(self, namespace: str | None = None) -> Iterator[Offer]:
        """See `ToolModel`."""
        yield from ()


class ChoiceModel(RequestModel):
    """A choice that names tools, whose `type` says which of these models it is."""

    unserved: ClassVar[Fields] = {"description": INFORMS}

    @classmethod
    def kind_of(cls, values: Mapping[str, Any], path: str) -> type[RequestModel]:
        """The model of the choice at `path`."""
        return AllowedTools if values.get("type") == "allowed_tools" else ChosenTool


class ChosenTool(ChoiceModel):
    """Names a tool."""

    type: Literal["function", "custom"]
    name: str
    namespace: str | None = None


class AllowedTools(ChoiceModel):
    """Only some of the tools, of which one must be called or may be."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenTool] = Field(min_length=1)


ToolChoice = Literal["none", "auto", "required"] | ChosenTool | AllowedTools
AnyTool = Annotated[FunctionTool | CustomTool | NamespaceTool | WebSearchTool, Field(discriminator="type")]
TOOL_MODELS: dict[str, type[ToolModel]] = {
    "function": FunctionTool,
    "custom": CustomTool,
    "namespace": NamespaceTool,
}


def offers_of(tools: Sequence[AnyTool]) -> tuple[Offer, ...]:
    """All that the model is offered.

    Raises:
        InvalidRequestError: there are too many, or two have the same name.
    """
    offers: dict[str, Offer] = {}
    for place, tool in enumerate(tools):
        for offer in tool.offers():
            if offer.name in offers:
                field = f"tools.{place}.name"
                message = f"{field} = {shown(offer.own_name)}: another tool has this name"
                raise InvalidRequestError(message, param=field)
            offers[offer.name] = offer
    if len(offers) > MAX_TOOLS:
        raise InvalidRequestError(f"tools: {MAX_TOOLS} at most, not {len(offers)}", param="tools")
    return tuple(offers.values())


def wish_of(offers: Sequence[Offer], choice: ToolChoice | None, *, parallel: bool) -> CallWish:
    """The calls that a request allows or wants.

    Raises:
        InvalidRequestError: it wants a call, and there is no such tool.
    """
    match choice:
        case None | "auto":
            return CallWish(_tools(offers), parallel=parallel)
        case "none":
            return CallWish()
        case "required":
            if not offers:
                message = "tool_choice = 'required': tools are needed"
                raise InvalidRequestError(message, param="tool_choice")
            return CallWish(_tools(offers), required=True, parallel=parallel)
        case ChosenTool():
            chosen = _named(offers, choice, "tool_choice")
            return CallWish(_tools([chosen]), required=True, parallel=False)
        case AllowedTools():
            named = enumerate(choice.tools)
            allowed = [_named(offers, each, f"tool_choice.tools.{place}") for place, each in named]
            return CallWish(_tools(allowed), required=choice.mode == "required", parallel=parallel)


def _tools(offers: Sequence[Offer]) -> tuple[Tool, ...]:
    return tuple(Tool(offer.name, offer.parameters, offer.strict) for offer in offers)


def _named(offers: Sequence[Offer], wanted: ChosenTool, path: str) -> Offer:
    """The tool that is named at `path`."""
    is_custom = wanted.type == "custom"
    for offer in offers:
        own = (offer.own_name, offer.is_custom)
        if own == (wanted.name, is_custom) and wanted.namespace in (None, offer.namespace):
            return offer
    known = [offer.own_name for offer in offers if offer.is_custom == is_custom]
    allowed = f"allowed: {one_of(dict.fromkeys(known))}" if known else f"there are no {wanted.type} tools"
    message = f"{path}.name = {shown(wanted.name)}: {allowed}"
    raise InvalidRequestError(message, param=f"{path}.name")
