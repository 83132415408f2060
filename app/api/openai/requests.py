"""The bodies of OpenAI's completion endpoints as this server takes them: of chats and of texts."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from app.api.openai.completion import CompletionRequest
from app.api.openai.logprobs import Kind
from app.api.request_model import RequestModel, TokenId, parse_body
from app.errors import InvalidRequestError
from app.generation import MAX_LOGPROBS


class TextPart(RequestModel):
    """One part of a message whose content is a list."""

    type: Literal["text"]
    text: str


class Message(RequestModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def flat(self) -> dict[str, str]:
        """The message as chat templates take it, its parts joined. `developer` is OpenAI's new `system`."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        name = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": content, **name}


class ChatRequest(CompletionRequest):
    """The body of POST /v1/chat/completions."""

    kind: ClassVar[Kind] = "chat"
    prompt_field: ClassVar[str] = "messages"

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            message = f"top_logprobs = {self.top_logprobs}; allowed only with logprobs: true"
            raise InvalidRequestError(message, param="top_logprobs")
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise InvalidRequestError(
                "max_tokens: the old name of max_completion_tokens; send one of them", param="max_tokens"
            )
        return self

    @property
    def max_output_tokens(self) -> int | None:
        """Output tokens at most; None: as many as the context allows."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


class TextRequest(CompletionRequest):
    """The body of POST /v1/completions: one prompt, as text or token ids."""

    kind: ClassVar[Kind] = "text"
    prompt_field: ClassVar[str] = "prompt"

    prompt: str | Annotated[list[TokenId], Field(min_length=1)]
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        """Many clients send even a single prompt as a list of prompts."""
        if not (isinstance(value, list) and value and isinstance(value[0], str | list)):
            return value
        if len(value) > 1:
            message = f"prompt: {len(value)} prompts; one per request is allowed"
            raise InvalidRequestError(message, param="prompt")
        return value[0]

    @property
    def max_output_tokens(self) -> int | None:
        """Output tokens at most."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


def parse_chat(body: bytes) -> ChatRequest:
    """The chat in `body`. Raises `InvalidRequestError`, as `parse_body` does."""
    return parse_body(ChatRequest, body)


def parse_text(body: bytes) -> TextRequest:
    """The text completion in `body`. Raises `InvalidRequestError`, as `parse_body` does."""
    return parse_body(TextRequest, body)
