"""OpenAI's answers: whole, as chunks of a stream, and as errors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from app.api.openai.logprobs import Echo, Json, Kind, Spell, joined
from app.errors import RequestError
from app.generation import TokenChunk, TokenLogprobs
from app.text.output.formats import PLAIN_OUTPUT, OutputFormat

STREAM_END = b"data: [DONE]\n\n"
UsageInStream = Literal["none", "last chunk", "every chunk"]


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
    """One sample's whole text; `logprobs` has an entry per token. `message`: a chat's, unless it is text."""

    text: str
    finish_reason: str | None
    logprobs: list[Json] | None = None
    token_ids: Sequence[int] = ()
    message: Json | None = None


@dataclass(frozen=True)
class AnswerShape:
    """How one answer is written: the endpoint's kind, and what every part of it repeats.

    `spell` shows tokens where the answer has logprobs; None if it has none. `prompt_token_ids`, those of
    each prompt, is None unless the answer has the tokens of prompts and outputs, where vLLM has them.
    `output` finds calls and thoughts in a chat's text; `shows_thoughts`: whether the client wants these.

    There are `n` choices for each prompt, prompt by prompt; None: there is one prompt. `echoes`, one for each
    prompt, is None unless texts begin with their prompts. `shows_output`: whether anything else is wanted.
    """

    kind: Kind
    request_id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    spell: Spell | None = None
    prompt_token_ids: Sequence[Sequence[int]] | None = None
    output: OutputFormat = PLAIN_OUTPUT
    shows_thoughts: bool = True
    n: int | None = None
    echoes: Sequence[Echo] | None = None
    shows_output: bool = True

    def shown(self, chunk: TokenChunk) -> TokenChunk:
        """What the client gets of a chunk: where no output is wanted, what it says of the prompt alone."""
        if self.shows_output:
            return chunk
        logprobs = None if chunk.logprobs is None else list[TokenLogprobs]()
        return replace(chunk, token_ids=[], logprobs=logprobs, finish_reason="length")

    def echo(self, index: int) -> Echo | None:
        """What the text of choice `index` begins with."""
        return None if self.echoes is None else self.echoes[self.prompt_of(index)]

    def prompt_of(self, index: int) -> int:
        """The number of the prompt that choice `index` answers."""
        return 0 if self.n is None else index // self.n

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Json:
        """The answer in one piece, its samples in order."""
        is_chat = self.kind == "chat"
        shown = []
        for index, choice in enumerate(choices):
            said = {"content": choice.text} if choice.message is None else choice.message
            message = {"message": {"role": "assistant", **said}}
            content = message if is_chat else {"text": choice.text}
            content |= self._tokens(choice.token_ids)
            content |= {} if is_chat else self._prompt_tokens(index)
            shown.append(self._choice(index, content, choice.finish_reason, choice.logprobs))
        name = "chat.completion" if is_chat else "text_completion"
        prompt = self._prompt_tokens(0) if is_chat else {}
        return {**self._head(name), **prompt, "choices": shown, "usage": usage.as_json()}

    def chunk(
        self,
        text: str,
        *,
        is_first: bool,
        index: int = 0,
        logprobs: list[Json] | None = None,
        token_ids: Sequence[int] = (),
        delta: Json | None = None,
    ) -> Json:
        """One piece of a sample's text, or of a chat's message. A sample's first one has a chat's role."""
        role = {"role": "assistant"} if is_first else {}
        is_chat = self.kind == "chat"
        said = {"content": text} if delta is None else delta
        content = {"delta": {**role, **said}} if is_chat else {"text": text}
        content |= self._tokens(token_ids)
        prompt = self._prompt_tokens(index) if is_first else {}
        choice = self._choice(index, content if is_chat else {**content, **prompt}, None, logprobs)
        return {**self._chunk_head(), **(prompt if is_chat else {}), "choices": [choice]}

    def end(self, finish_reason: str, index: int = 0) -> Json:
        """A sample's last chunk, which has nothing but the reason of its end."""
        content: Json = {"delta": {}} if self.kind == "chat" else {"text": ""}
        return {**self._chunk_head(), "choices": [self._choice(index, content, finish_reason, None)]}

    def usage_chunk(self, usage: Usage) -> Json:
        """The chunk without choices that ends a stream whose client asked for usage."""
        return {**self._chunk_head(), "choices": [], "usage": usage.as_json()}

    def _prompt_tokens(self, index: int) -> Json:
        """Those of the prompt of choice `index`."""
        prompts = self.prompt_token_ids
        return {} if prompts is None else {"prompt_token_ids": list(prompts[self.prompt_of(index)])}

    def _tokens(self, token_ids: Sequence[int]) -> Json:
        return {} if self.prompt_token_ids is None else {"token_ids": list(token_ids)}

    def _chunk_head(self) -> Json:
        return self._head("chat.completion.chunk" if self.kind == "chat" else "text_completion")

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
