"""A chat's answer in its parts, whole and in deltas: `content`, `reasoning_content`, `tool_calls`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.api.openai.logprobs import Json
from app.text.output.parts import CallArguments, CallStart, Part, Text, Thought


@dataclass
class _Call:
    call_id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class MessageParts:
    """One sample's message while its parts come.

    Args:
        sample_id: the sample's, by which its calls have the same ids wherever they are shown.
        id_chars: characters of a call's id: Mistral's templates take only 9; None is OpenAI's form.
        shows_thoughts: whether the client wants to read them.
    """

    def __init__(self, sample_id: str, *, id_chars: int | None, shows_thoughts: bool) -> None:
        self._sample_id = sample_id
        self._id_chars = id_chars
        self._shows_thoughts = shows_thoughts
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[_Call] = []

    @property
    def has_calls(self) -> bool:
        """Whether a call has begun."""
        return bool(self._calls)

    def take(self, parts: Sequence[Part]) -> list[Json]:
        """The deltas of a stream that show these parts."""
        return [delta for part in parts if (delta := self._take(part)) is not None]

    def _take(self, part: Part) -> Json | None:
        match part:
            case Text(text):
                self._texts.append(text)
                return {"content": text}
            case Thought(text):
                self._thoughts.append(text)
                return {"reasoning_content": text} if self._shows_thoughts else None
            case CallStart(index, name):
                call = _Call(call_id(self._sample_id, index, self._id_chars), name)
                self._calls.append(call)
                return {"tool_calls": [{"index": index, **_shown(call)}]}
            case CallArguments(index, text):
                self._calls[index].arguments.append(text)
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}

    def whole(self) -> Json:
        """The message so far, but for its role. A content that is nothing beside calls is null."""
        text = "".join(self._texts)
        message: Json = {"content": text or None if self._calls else text}
        if self._thoughts and self._shows_thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = [_shown(call) for call in self._calls]
        return message


def call_id(sample_id: str, index: int, id_chars: int | None) -> str:
    """The id of a sample's call: the same whole and streamed, and wherever its answer goes on.

    Args:
        sample_id: the sample's.
        index: the call's number in it.
        id_chars: how long it must be; None is OpenAI's form.
    """
    digest = hashlib.sha256(f"{sample_id}-{index}".encode()).hexdigest()
    return f"call_{digest[:24]}" if id_chars is None else digest[:id_chars]


def _shown(call: _Call) -> Json:
    function = {"name": call.name, "arguments": "".join(call.arguments)}
    return {"id": call.call_id, "type": "function", "function": function}
