"""OpenAI's answers: whole, as chunks of a stream, and as errors."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from app.deployments.openai_logprobs import Json, Kind, Spell, joined
from app.errors import RequestError

STREAM_END = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def as_json(self) -> Json:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


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

    def whole(
        self, text: str, finish_reason: str | None, usage: Usage, logprobs: list[Json] | None = None
    ) -> Json:
        """The answer in one piece; `logprobs` has an entry per token."""
        if self.kind == "chat":
            choice: Json = {"message": {"role": "assistant", "content": text}}
            name = "chat.completion"
        else:
            choice = {"text": text}
            name = "text_completion"
        return {**self._part(name, choice, finish_reason, logprobs), "usage": usage.as_json()}

    def chunk(
        self,
        text: str,
        finish_reason: str | None,
        *,
        is_first: bool,
        logprobs: list[Json] | None = None,
    ) -> Json:
        """One piece of text, or the end. A chat's first chunk says who speaks."""
        if self.kind == "chat":
            delta = {"role": "assistant", "content": text} if is_first else {"content": text} if text else {}
            return self._part("chat.completion.chunk", {"delta": delta}, finish_reason, logprobs)
        return self._part("text_completion", {"text": text}, finish_reason, logprobs)

    def usage_chunk(self, usage: Usage) -> Json:
        """The chunk without choices that ends a stream whose client asked for usage."""
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [], "usage": usage.as_json()}

    def _part(self, name: str, choice: Json, finish_reason: str | None, logprobs: list[Json] | None) -> Json:
        shown = None if logprobs is None else joined(self.kind, logprobs)
        choice = {"index": 0, **choice, "logprobs": shown, "finish_reason": finish_reason}
        return {**self._head(name), "choices": [choice]}

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
