"""Anthropic's answer to a conversation: a message, whole or as the events of a stream.

    message_start ( content_block_start content_block_delta* content_block_stop )* message_delta message_stop

A block is a text, thoughts or a call of a tool; the next one begins where the output turns to something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic_core import from_json

from app.api.anthropic.errors import Json
from app.api.anthropic.thoughts import signature_of
from app.api.openai.responses import Usage
from app.text.output.parts import CallArguments, CallStart, Part, Text, Thought

PING: Json = {"type": "ping"}
MESSAGE_STOP: Json = {"type": "message_stop"}


@dataclass(frozen=True)
class MessageShape:
    """How one answer is written.

    Attributes:
        request_id: names it, and its calls.
        model: the name that it has.
        max_tokens: output tokens at most, as the client asked.
        shows_thoughts: whether the client wants to read them.
        id_chars: characters of a call's id: Mistral's templates take only 9; None is Anthropic's form.
    """

    request_id: str
    model: str
    max_tokens: int
    shows_thoughts: bool = True
    id_chars: int | None = None

    def message(
        self, content: Sequence[Json], usage: Json, stop_reason: str | None, stop_sequence: str | None
    ) -> Json:
        """The message; of a stream, as it begins."""
        return {
            **{"id": f"msg_{self.request_id}", "type": "message", "role": "assistant", "model": self.model},
            **{"content": list(content), "stop_reason": stop_reason, "stop_sequence": stop_sequence},
            "usage": usage,
        }

    def stop_reason(self, finish_reason: str | None, usage: Usage, *, matched: bool, calls: bool) -> str:
        """Why the output ended.

        Args:
            finish_reason: the engine's.
            usage: at the end.
            matched: whether a stop sequence was found.
            calls: whether there is a call.
        """
        if finish_reason == "length":
            is_limit = usage.completion_tokens >= self.max_tokens
            return "max_tokens" if is_limit else "model_context_window_exceeded"
        if matched:
            return "stop_sequence"
        return "tool_use" if calls else "end_turn"

    def call_id(self, index: int) -> str:
        """The id of a call, the same wherever it is shown."""
        digest = hashlib.sha256(f"{self.request_id}-{index}".encode()).hexdigest()
        return f"toolu_{digest[:24]}" if self.id_chars is None else digest[: self.id_chars]


def usage_json(usage: Usage) -> Json:
    """Anthropic's usage object, in which the three kinds of input tokens sum to the prompt.

    Every full block of a prompt is cached, asked or not and at no price, so nothing counts as written.
    """
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


@dataclass
class _OpenBlock:
    """A block that is being written: its first event, and the texts of its deltas."""

    start: Json
    texts: list[str] = field(default_factory=list)


class MessageContent:
    """The blocks of one message while its parts come."""

    def __init__(self, shape: MessageShape) -> None:
        self._shape = shape
        self._blocks: list[Json] = []
        self._open: _OpenBlock | None = None
        self.has_calls = False

    @property
    def blocks(self) -> Sequence[Json]:
        """All blocks; none is open any more."""
        return self._blocks

    def take(self, parts: Sequence[Part]) -> Iterator[Json]:
        """The events that show these parts."""
        for part in parts:
            match part:
                case Text(text):
                    yield from self._add("text", {"text": ""}, "text_delta", "text", text)
                case Thought(text):
                    start: Json = {"thinking": "", "signature": ""}
                    yield from self._add("thinking", start, "thinking_delta", "thinking", text)
                case CallStart(index, name):
                    self.has_calls = True
                    call_id = self._shape.call_id(index)
                    yield from self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}})
                case CallArguments(_, text):
                    yield from self._add("tool_use", {}, "input_json_delta", "partial_json", text)

    def end(self) -> Iterator[Json]:
        """The events that end the last block."""
        block, self._open = self._open, None
        if block is None:
            return
        whole = "".join(block.texts)
        match block.start["type"]:
            case "text":
                self._blocks.append({"type": "text", "text": whole})
            case "thinking":
                signature = signature_of(whole, shown=self._shape.shows_thoughts)
                yield self._delta("signature_delta", "signature", signature)
                shown = whole if self._shape.shows_thoughts else ""
                self._blocks.append({"type": "thinking", "thinking": shown, "signature": signature})
            case _:
                self._blocks.append({**block.start, "input": _arguments(whole)})
        yield {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def _begin(self, block: Json) -> Iterator[Json]:
        yield from self.end()
        self._open = _OpenBlock(block)
        yield {"type": "content_block_start", "index": len(self._blocks), "content_block": block}

    def _add(self, kind: str, start: Json, delta: str, name: str, text: str) -> Iterator[Json]:
        if self._open is None or self._open.start["type"] != kind:
            yield from self._begin({"type": kind, **start})
        assert self._open is not None
        self._open.texts.append(text)
        if kind != "thinking" or self._shape.shows_thoughts:
            yield self._delta(delta, name, text)

    def _delta(self, kind: str, name: str, text: str) -> Json:
        delta = {"type": kind, name: text}
        return {"type": "content_block_delta", "index": len(self._blocks), "delta": delta}


def _arguments(text: str) -> Json:
    """A call's arguments; of one that the limit cut, what there was."""
    try:
        given = from_json(text or "{}", allow_partial=True)
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}
