"""A chat's messages, as clients write them and as they send a model's answers back."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from app.api.fields import MESSAGE, PART, TOOL_CALL, Fields
from app.api.request_model import RequestModel, read_json
from app.errors import InvalidRequestError, shown
from app.text.chat_prompt import ChatMessage


def _text_or_refusal(schema: dict[str, Any]) -> None:
    """Describes a part as it may come."""
    schema["properties"]["refusal"] = {"type": "string"}
    schema["required"].remove("text")


class TextPart(RequestModel):
    """One part of a message whose content is a list. A refusal is what an assistant has said instead."""

    model_config = ConfigDict(json_schema_extra=_text_or_refusal)

    unserved: ClassVar[Fields] = PART

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str

    @classmethod
    def unwrapped(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A refusal has its text in a field of its name."""
        if values.get("type") != "refusal":
            return values
        return {name if name != "refusal" else "text": value for name, value in values.items()}


class CalledFunction(RequestModel):
    """What a tool call calls, with what arguments: an object, or its JSON."""

    name: str = Field(min_length=1)
    arguments: str | dict[str, Any] = ""

    def parsed_arguments(self, path: str) -> dict[str, Any]:
        """The arguments as an object, in which form templates take them.

        Raises:
            InvalidRequestError: they are something else; `path` is theirs in the body.
        """
        if isinstance(self.arguments, dict):
            return self.arguments
        if not self.arguments.strip():
            return {}
        try:
            parsed = read_json(self.arguments.encode())
        except InvalidRequestError:
            parsed = None
        if not isinstance(parsed, dict):
            message = f"{path} = {shown(self.arguments)}: the JSON of an object is needed"
            raise InvalidRequestError(message, param=path)
        return parsed


class ToolCall(RequestModel):
    """An assistant's call of a function."""

    unserved: ClassVar[Fields] = TOOL_CALL

    type: Literal["function"] = "function"
    id: str | None = None
    function: CalledFunction

    def as_template_takes_it(self, path: str) -> dict[str, Any]:
        """The call as chat templates read it."""
        arguments = self.function.parsed_arguments(f"{path}.function.arguments")
        call_id = {} if self.id is None else {"id": self.id}
        return {
            **call_id,
            "type": self.type,
            "function": {"name": self.function.name, "arguments": arguments},
        }


class Message(RequestModel):
    """One message of a conversation.

    Attributes:
        content: may be missing where an assistant has said something in another way.
        refusal: what an assistant has said instead of a content.
        reasoning_content, reasoning: its thoughts, under two names; templates leave out what they don't need.
    """

    unserved: ClassVar[Fields] = MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None

    def as_template_takes_it(self, path: str) -> ChatMessage:
        """The message as prompts are made of it. `developer` is OpenAI's new `system`.

        Raises:
            InvalidRequestError: it says nothing, or has calls that are none; `path` is its own in the body.
        """
        role = "system" if self.role == "developer" else self.role
        fields: dict[str, Any] = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content or self.reasoning,
            "tool_calls": self._calls(path),
        }
        return ChatMessage(role, self._texts(path), {name: each for name, each in fields.items() if each})

    def _texts(self, path: str) -> tuple[str, ...]:
        if isinstance(self.content, str):
            return (self.content,)
        if self.content is not None:
            return tuple(part.text for part in self.content)
        if self.role == "assistant":
            if self.refusal is not None:
                return (self.refusal,)
            if self.tool_calls or self.reasoning_content or self.reasoning:
                return ()
        field = f"{path}.content"
        raise InvalidRequestError(f"{field}: required", param=field, code="missing_field")

    def _calls(self, path: str) -> list[dict[str, Any]]:
        if self.tool_calls and self.role != "assistant":
            field = f"{path}.tool_calls"
            message = f"{field}: role = {self.role!r}; only an assistant's message has them"
            raise InvalidRequestError(message, param=field)
        calls = enumerate(self.tool_calls)
        return [call.as_template_takes_it(f"{path}.tool_calls.{place}") for place, call in calls]
