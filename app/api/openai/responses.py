"""OpenAI's answers: whole, as chunks of a stream, and as errors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from app.api.openai.logprobs import Json, Kind, Spell, joined
from app.errors import RequestError

STREAM_END = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Usage:
    """Token counts of one request.

    Attributes:
        prompt_tokens, cached_tokens, completion_tokens: its own.
        missed_tokens: by name, more members of `prompt_tokens_details`; numbers, as OpenAI's are.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    missed_tokens: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> Json:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, **self.missed_tokens},
        }


@dataclass(frozen=True)
class Choice:
    """One sample's whole text; `logprobs` has an entry per token."""

    text: str
    finish_reason: str | None
    logprobs: list[Json] | None = None


@dataclass(frozen=True)
class AnswerShape:
    """How one answer is written: the endpoint's kind, and what every part of it repeats.

    `spell` shows tokens where the answer has logprobs; None if it has none.
    """

    kind: Kind
    request_id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    spell: Spell | None = None

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Json:
        """The answer in one piece, its samples in order."""
        is_chat = self.kind == "chat"
        shown = []
        for index, choice in enumerate(choices):
            message = {"message": {"role": "assistant", "content": choice.text}}
            content = message if is_chat else {"text": choice.text}
            shown.append(self._choice(index, content, choice.finish_reason, choice.logprobs))
        name = "chat.completion" if is_chat else "text_completion"
        return {**self._head(name), "choices": shown, "usage": usage.as_json()}

    def chunk(
        self,
        text: str,
        finish_reason: str | None,
        *,
        is_first: bool,
        index: int = 0,
        logprobs: list[Json] | None = None,
    ) -> Json:
        """One piece of a sample's text, or its end. A chat's first chunk of every sample has the role."""
        content: Json = {"text": text}
        name = "text_completion"
        if self.kind == "chat":
            delta = {"role": "assistant", "content": text} if is_first else {"content": text} if text else {}
            content, name = {"delta": delta}, "chat.completion.chunk"
        return {**self._head(name), "choices": [self._choice(index, content, finish_reason, logprobs)]}

    def usage_chunk(self, usage: Usage) -> Json:
        """The chunk without choices that ends a stream whose client asked for usage."""
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [], "usage": usage.as_json()}

    def _choice(
        self, index: int, content: Json, finish_reason: str | None, logprobs: list[Json] | None
    ) -> Json:
        shown = None if logprobs is None else joined(self.kind, logprobs)
        return {"index": index, **content, "logprobs": shown, "finish_reason": finish_reason}

    def _head(self, name: str) -> Json:
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": name,
            "created": self.created,
            "model": self.model,
        }


def error_json(error: RequestError) -> Json:
    """OpenAI's error object."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_headers(error: RequestError) -> dict[str, str]:
    """HTTP headers that belong to an error."""
    return {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}


def sse(event: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
