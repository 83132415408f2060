"""The blocks of a message's content: texts, thoughts, calls of tools and their results.

What each is, its `type` says. Blocks that hold something else than text, or that Anthropic's own tools make,
are refused by their type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from app.api.fields import ANTHROPIC_BLOCK, REDACTED_THINKING, Fields
from app.api.request_model import RequestModel
from app.errors import InvalidRequestError, shown
from app.validation import one_of

Kind = type[RequestModel]


def type_in(values: Mapping[str, Any], path: str, allowed: Mapping[str, object]) -> str:
    """The type of an object, where its fields depend on it; `path` ends in a dot.

    Raises:
        InvalidRequestError: it has none, or another than is allowed.
    """
    field, given = f"{path}type", values.get("type")
    if given is None:
        raise InvalidRequestError(f"{field}: required", param=field, code="missing_field")
    if not isinstance(given, str) or given not in allowed:
        message = f"{field} = {shown(given)} isn't supported; allowed: {one_of(allowed)}"
        raise InvalidRequestError(message, param=field, code="unsupported_field")
    return given


def _tag(block: Any) -> str | None:
    """Which member of a union a block is: a name that no field has, or errors' paths would have it."""
    return f"{block['type']} block" if isinstance(block, dict) else None


class Block(RequestModel):
    """One block of a content."""

    unserved: ClassVar[Fields] = ANTHROPIC_BLOCK


class TextBlock(Block):
    """A text."""

    type: Literal["text"]
    text: str

    @classmethod
    def kind_of(cls, values: Mapping[str, Any], path: str) -> Kind:
        """Of a message's content, whose first kind it is."""
        return _IN_MESSAGES[type_in(values, path, _IN_MESSAGES)]


class ThinkingBlock(Block):
    """An assistant's thoughts, as they were sent to the client.

    Attributes:
        signature: sent with them; it has the thoughts where the client didn't want to see them.
    """

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Block):
    """Thoughts that only Anthropic's server can read: they are left out, and its client is told."""

    unserved: ClassVar[Fields] = REDACTED_THINKING

    type: Literal["redacted_thinking"]


class ToolUseBlock(Block):
    """An assistant's call of a tool, with its arguments."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: dict[str, Any]


class ToolReferenceBlock(Block):
    """In the result of a search for tools: one that was found, and may be called from then on."""

    type: Literal["tool_reference"]
    tool_name: str

    @classmethod
    def kind_of(cls, values: Mapping[str, Any], path: str) -> Kind:
        """Of a result's content, whose first kind it is."""
        return _IN_RESULTS[type_in(values, path, _IN_RESULTS)]


ResultContent = list[
    Annotated[
        Annotated[ToolReferenceBlock, Tag("tool_reference block")] | Annotated[TextBlock, Tag("text block")],
        Discriminator(_tag),
    ]
]


class ToolResultBlock(Block):
    """What came of a call.

    Attributes:
        tool_use_id: the call's.
        is_error: whether it failed.
    """

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | ResultContent = ""
    is_error: bool = False


Content = list[
    Annotated[
        Annotated[TextBlock, Tag("text block")]
        | Annotated[ThinkingBlock, Tag("thinking block")]
        | Annotated[RedactedThinkingBlock, Tag("redacted_thinking block")]
        | Annotated[ToolUseBlock, Tag("tool_use block")]
        | Annotated[ToolResultBlock, Tag("tool_result block")],
        Discriminator(_tag),
    ]
]

AnyBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock

_IN_MESSAGES: Mapping[str, Kind] = {
    "text": TextBlock,
    "thinking": ThinkingBlock,
    "redacted_thinking": RedactedThinkingBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
}
_IN_RESULTS: Mapping[str, Kind] = {"text": TextBlock, "tool_reference": ToolReferenceBlock}
