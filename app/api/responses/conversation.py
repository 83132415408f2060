"""Items to messages: what a model said, thought and called in one go is one message of it.

reasoning, message, function_call, function_call     assistant: thoughts, text and calls
function_call_output                                 tool
function_call_output                                 tool
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from app.api.responses.items import (
    CallItem,
    CallOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
    Texts,
    joined_name,
)
from app.text.chat_prompt import ChatMessage


def messages_of(items: Iterable[tuple[str, Item]]) -> list[ChatMessage]:
    """The messages of a conversation.

    Args:
        items: each with its path in the body.

    Raises:
        InvalidRequestError: arguments of a call are no object.
    """
    conversation = _Conversation()
    for path, item in items:
        conversation.add(path, item)
    return conversation.whole()


@dataclass
class _Turn:
    """What the model has said so far."""

    thoughts: str = ""
    texts: tuple[str, ...] | None = None
    content_field: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    calls_field: str | None = None

    @property
    def has_spoken(self) -> bool:
        return self.texts is not None or bool(self.calls)

    def message(self) -> ChatMessage:
        fields = {"reasoning_content": self.thoughts, "tool_calls": self.calls}
        return ChatMessage(
            "assistant",
            self.texts or (),
            {name: each for name, each in fields.items() if each},
            content_field=self.content_field,
            calls_field=self.calls_field,
        )


class _Conversation:
    def __init__(self) -> None:
        self._messages: list[ChatMessage] = []
        self._turn = _Turn()

    def add(self, path: str, item: Item) -> None:
        match item:
            case ReasoningItem():
                self._end_turn(if_spoken=True)
                self._turn.thoughts += item.thoughts
            case MessageItem(role="assistant"):
                self._end_turn(if_spoken=True)
                self._turn.texts, self._turn.content_field = _texts(item.content), f"{path}.content"
            case MessageItem():
                # `developer` is OpenAI's new `system`.
                role = "system" if item.role == "developer" else item.role
                self._append(ChatMessage(role, _texts(item.content), content_field=f"{path}.content"))
            case CallOutputItem():
                fields = {"tool_call_id": item.call_id}
                texts = _texts(item.output)
                self._append(ChatMessage("tool", texts, fields, content_field=f"{path}.output"))
            case _:
                self._call(path, item)

    def _call(self, path: str, item: CallItem) -> None:
        function = {
            "name": joined_name(item.namespace, item.name),
            "arguments": item.parsed_arguments(path),
        }
        self._turn.calls.append({"id": item.call_id, "type": "function", "function": function})
        self._turn.calls_field = self._turn.calls_field or path

    def _append(self, message: ChatMessage) -> None:
        self._end_turn()
        self._messages.append(message)

    def _end_turn(self, *, if_spoken: bool = False) -> None:
        if self._turn.has_spoken or (self._turn.thoughts and not if_spoken):
            self._messages.append(self._turn.message())
            self._turn = _Turn()

    def whole(self) -> list[ChatMessage]:
        self._end_turn()
        return self._messages


def _texts(content: Texts) -> tuple[str, ...]:
    return (content,) if isinstance(content, str) else tuple(part.text for part in content)
