"""A conversation in Anthropic's form, as the messages that chat templates know.

system                          ▶ a system message
user:       text                ▶ a user's message
            tool_result         ▶ a tool's message each, in its place between the texts
assistant:  text, thinking,     ▶ an assistant's message with reasoning_content and tool_calls
            tool_use
system:     text                ▶ a system message, in its place
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from app.api.anthropic.blocks import (
    AnyBlock,
    Content,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from app.api.anthropic.thoughts import is_foreign, thoughts_of
from app.api.anthropic.tools import ToolSpec
from app.api.fields import ANTHROPIC_MESSAGE, Fields
from app.api.request_model import RequestModel
from app.errors import InvalidRequestError, shown
from app.text.chat_prompt import ChatMessage
from app.validation import one_of

_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "system": ("text",),
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
}
"""Blocks of each role's messages."""
_ERROR = "Error: "
"""Before the result of a call that failed: chat templates have no place for `is_error`."""


class Message(RequestModel):
    """One message of a conversation."""

    unserved: ClassVar[Fields] = ANTHROPIC_MESSAGE

    role: Literal["user", "assistant", "system"]
    content: str | Content

    @property
    def blocks(self) -> Sequence[AnyBlock]:
        """The content as blocks."""
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    @property
    def thinks(self) -> bool:
        """Whether it has thoughts."""
        return any(isinstance(block, ThinkingBlock) for block in self.blocks)

    @property
    def has_foreign_thoughts(self) -> bool:
        """Whether some of its thoughts can't be read here."""
        thoughts = (block for block in self.blocks if isinstance(block, ThinkingBlock))
        return any(is_foreign(block.thinking, block.signature) for block in thoughts)


def found_tools(messages: Sequence[Message]) -> set[str]:
    """The names of tools that the messages refer to."""
    results = (each for message in messages for each in message.blocks if isinstance(each, ToolResultBlock))
    contents = (result.content for result in results if not isinstance(result.content, str))
    return {part.tool_name for parts in contents for part in parts if isinstance(part, ToolReferenceBlock)}


class Translator:
    """Makes a chat's messages of one conversation.

    Args:
        tools: those that its messages may refer to.
        num_thinking: how many of the last assistant's messages that have thoughts keep them; None: all.
    """

    def __init__(self, tools: Sequence[ToolSpec], num_thinking: int | None = None) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._num_thinking = num_thinking
        self._calls: dict[str, str] = {}
        """The names of the tools that were called so far, by the calls' ids."""

    def chat_messages(self, messages: Sequence[Message]) -> Iterator[ChatMessage]:
        """The messages as templates take them.

        Raises:
            InvalidRequestError: a block in a place where it can't be, a result without its call.
        """
        thinking = [place for place, message in enumerate(messages) if message.thinks]
        kept = thinking if self._num_thinking is None else thinking[len(thinking) - self._num_thinking :]
        for place, message in enumerate(messages):
            path = f"messages.{place}.content"
            for number, block in enumerate(message.blocks):
                _check_role(block, message.role, f"{path}.{number}")
            if message.role == "assistant":
                yield self._assistants(message, path, with_thoughts=place in kept)
            elif message.role == "user":
                yield from self._users(message, path)
            else:
                yield ChatMessage(message.role, tuple(_texts(message.blocks)), content_field=path)

    def _users(self, message: Message, path: str) -> Iterator[ChatMessage]:
        texts: list[str] = []
        blocks = message.blocks
        for place, block in enumerate(blocks):
            if isinstance(block, ToolResultBlock):
                if texts:
                    yield ChatMessage("user", tuple(texts), content_field=path)
                    texts = []
                yield self._result(block, f"{path}.{place}")
            else:
                texts += _texts([block])
        if texts or not blocks:
            yield ChatMessage("user", tuple(texts), content_field=path)

    def _result(self, block: ToolResultBlock, path: str) -> ChatMessage:
        name = self._calls.get(block.tool_use_id)
        if name is None:
            field = f"{path}.tool_use_id"
            message = f"{field} = {shown(block.tool_use_id)}: no tool_use before it has this id"
            raise InvalidRequestError(message, param=field)
        fields = {"tool_call_id": block.tool_use_id, "name": name}
        texts = tuple(self._result_texts(block, path))
        texts = (_ERROR, *texts) if block.is_error else texts
        return ChatMessage("tool", texts, fields, content_field=path)

    def _result_texts(self, block: ToolResultBlock, path: str) -> Iterator[str]:
        if isinstance(block.content, str):
            yield block.content
            return
        for place, part in enumerate(block.content):
            yield (
                part.text if isinstance(part, TextBlock) else self._referred(part, f"{path}.content.{place}")
            )

    def _referred(self, part: ToolReferenceBlock, path: str) -> str:
        tool = self._tools.get(part.tool_name)
        if tool is None:
            field = f"{path}.tool_name"
            known = f"allowed: {one_of(self._tools)}" if self._tools else "there are no tools"
            raise InvalidRequestError(f"{field} = {shown(part.tool_name)}: {known}", param=field)
        return tool.as_text()

    def _assistants(self, message: Message, path: str, *, with_thoughts: bool) -> ChatMessage:
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for place, block in enumerate(message.blocks):
            if isinstance(block, ThinkingBlock) and with_thoughts:
                thoughts.append(thoughts_of(block.thinking, block.signature, f"{path}.{place}.signature"))
            elif isinstance(block, ToolUseBlock):
                self._calls[block.id] = block.name
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
        fields = {"reasoning_content": "".join(thoughts), "tool_calls": calls}
        given = {name: value for name, value in fields.items() if value}
        texts = tuple(_texts(message.blocks))
        return ChatMessage("assistant", texts, given, content_field=path, calls_field=path)


def _texts(blocks: Sequence[AnyBlock]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, TextBlock)]


def _check_role(block: AnyBlock, role: str, path: str) -> None:
    allowed = _ALLOWED[role]
    if block.type not in allowed:
        field = f"{path}.type"
        message = f"{field} = {shown(block.type)}: the role is {role!r}; allowed there: {one_of(allowed)}"
        raise InvalidRequestError(message, param=field)
