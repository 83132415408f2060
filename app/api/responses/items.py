"""The items that a conversation is made of, as clients write them and as they send a model's output back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from app.api.fields import PART, RESPONSE_ITEM, Fields
from app.api.openai.messages import CalledFunction, TextPart
from app.api.request_model import RequestModel
from app.errors import InvalidRequestError, shown
from app.validation import one_of

_THOUGHTS = "kvbeacon."
"""What begins an `encrypted_content` of ours."""

Texts = str | list[TextPart]


def packed_thoughts(thoughts: str) -> str:
    """Thoughts as an `encrypted_content`, for clients that send back nothing else of them.

    It hides nothing: the client has read them.
    """
    return _THOUGHTS + base64.b64encode(thoughts.encode()).decode()


def _unpacked(content: str) -> str:
    """The thoughts that were packed; none of another server's."""
    if not content.startswith(_THOUGHTS):
        return ""
    try:
        return base64.b64decode(content.removeprefix(_THOUGHTS), validate=True).decode()
    except ValueError:
        return ""


def joined_name(namespace: str | None, name: str) -> str:
    """A tool's name for the model: a namespace is part of it."""
    return name if namespace is None else f"{namespace}__{name}"


class ItemModel(RequestModel):
    """An item, whose `type` says which of these models it is."""

    unserved: ClassVar[Fields] = RESPONSE_ITEM

    @classmethod
    def kind_of(cls, values: Mapping[str, Any], path: str) -> type[RequestModel]:
        """The model of the item at `path`. A message may have no type."""
        given = values.get("type")
        if given is None:
            given = "message" if "role" in values else "item_reference" if "id" in values else None
        model = ITEM_MODELS.get(given) if isinstance(given, str) else None
        if model is not None:
            return model
        field = f"{path}type"
        if given is None:
            raise InvalidRequestError(f"{field}: required", param=field, code="missing_field")
        wanted = "send the item itself" if given == "item_reference" else f"allowed: {one_of(ITEM_MODELS)}"
        message = f"{field} = {shown(given)}: {wanted}"
        raise InvalidRequestError(message, param=field, code="unsupported_field")


class MessageItem(ItemModel):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Texts

    @classmethod
    def unwrapped(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The item with the type that it may leave out."""
        return {**values, "type": "message"}


class FunctionCallItem(ItemModel):
    """The model's call of a function."""

    type: Literal["function_call"]
    call_id: str
    name: str = Field(min_length=1)
    namespace: str | None = None
    arguments: str = ""

    def parsed_arguments(self, path: str) -> dict[str, Any]:
        """The arguments as an object. Raises `InvalidRequestError`: they are something else."""
        return CalledFunction(name=self.name, arguments=self.arguments).parsed_arguments(f"{path}.arguments")


class CustomCallItem(ItemModel):
    """The model's call of a tool that takes a text."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str = Field(min_length=1)
    namespace: str | None = None
    input: str

    def parsed_arguments(self, path: str) -> dict[str, Any]:
        """The text as an object, which is how the model writes it."""
        return {"input": self.input}


class CallOutputItem(ItemModel):
    """What came of a call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Texts


class ReasoningPart(RequestModel):
    """A piece of thoughts."""

    unserved: ClassVar[Fields] = PART

    type: Literal["reasoning_text", "summary_text", "text"]
    text: str


class ReasoningItem(ItemModel):
    """What the model thought."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] = Field(default_factory=list)
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None

    @property
    def thoughts(self) -> str:
        """The thoughts, or the most that the item has of them."""
        whole = "".join(part.text for part in self.content or [])
        return whole or _unpacked(self.encrypted_content or "") or "".join(each.text for each in self.summary)


CallItem = FunctionCallItem | CustomCallItem
Item = Annotated[
    MessageItem | FunctionCallItem | CustomCallItem | CallOutputItem | ReasoningItem,
    Field(discriminator="type"),
]

ITEM_MODELS: dict[str, type[ItemModel]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": CallOutputItem,
    "custom_tool_call": CustomCallItem,
    "custom_tool_call_output": CallOutputItem,
    "reasoning": ReasoningItem,
}
