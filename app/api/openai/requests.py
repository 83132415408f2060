"""The bodies of OpenAI's completion endpoints as this server takes them: of chats and of texts."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from app.api.chat_body import ChatBody
from app.api.fields import CHAT, TEXT, Fields
from app.api.openai.completion import CompletionRequest
from app.api.openai.logprobs import Kind
from app.api.openai.messages import Message
from app.api.openai.tools import ToolChoice, Tools, wish_of
from app.api.request_model import Int, TokenIds, parse_body
from app.errors import InvalidRequestError
from app.generation import MAX_LOGPROBS
from app.text.chat_prompt import Chat
from app.text.output.formats import CallWish


class ChatRequest(CompletionRequest, ChatBody):
    """The body of POST /v1/chat/completions.

    Attributes:
        chat_template_kwargs: variables of the model's chat template.
        add_generation_prompt: whether the prompt ends in the beginning of the model's message; by default
            unless the last message is to be continued.
        reasoning_effort, verbosity: for templates that read them.
        documents: what the template writes into the prompt, in its own form.
        separate_reasoning: whether thoughts are split from the content, into `reasoning_content`.
        include_reasoning: whether they are shown at all.
    """

    kind: ClassVar[Kind] = "chat"
    prompt_field: ClassVar[str] = "messages"
    unserved: ClassVar[Fields] = CHAT

    messages: list[Message] = Field(min_length=1)
    max_tokens: Annotated[Int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Int, Field(ge=1)] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    reasoning_effort: str | None = None
    verbosity: str | None = None
    documents: list[dict[str, Any]] = Field(default_factory=list)
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    separate_reasoning: bool = True
    include_reasoning: bool = True
    logprobs: bool = False
    top_logprobs: Int = Field(0, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            message = f"top_logprobs = {self.top_logprobs}; allowed only with logprobs: true"
            raise InvalidRequestError(message, param="top_logprobs")
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        old, new = self.max_tokens, self.max_completion_tokens
        if None not in (old, new) and old != new:
            raise InvalidRequestError(
                "max_tokens: the old name of max_completion_tokens; send one of them", param="max_tokens"
            )
        return self

    @model_validator(mode="after")
    def _one_end_of_the_prompt(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            message = "add_generation_prompt: continue_final_message is true too; send one of them"
            raise InvalidRequestError(message, param="add_generation_prompt")
        return self

    def chat(self) -> Chat:
        """The conversation. Raises `InvalidRequestError` for a message that is none."""
        messages = enumerate(self.messages)
        hints: dict[str, Any] = {"reasoning_effort": self.reasoning_effort, "verbosity": self.verbosity}
        required: dict[str, Any] = {"documents": self.documents}
        tools = [tool.as_template_takes_it() for tool in self.tools]
        # Tools that mustn't be called change little: a template that can't write them leaves them out.
        (hints if self.tool_choice == "none" else required)["tools"] = tools or None
        return Chat(
            [message.as_template_takes_it(f"messages.{place}") for place, message in messages],
            add_generation_prompt=self.add_generation_prompt is not False,
            continue_final_message=self.continue_final_message,
            add_special_tokens=bool(self.add_special_tokens),
            variables=self.chat_template_kwargs,
            hints={name: value for name, value in hints.items() if value is not None},
            required={name: value for name, value in required.items() if value},
        )

    def wish(self) -> CallWish:
        """The calls that it allows or wants. Raises `InvalidRequestError` for a tool that isn't there."""
        return wish_of(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)

    @property
    def splits_thoughts(self) -> bool:
        return self.separate_reasoning

    @property
    def max_output_tokens(self) -> int | None:
        """Output tokens at most; None: as many as the context allows."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


def _several(schema: dict[str, Any]) -> None:
    """Describes a prompt as it may come: alone, or as one of a list."""
    one = schema.pop("anyOf")
    schema["anyOf"] = [*one, {"type": "array", "items": {"anyOf": one}, "minItems": 1}]


class TextRequest(CompletionRequest):
    """The body of POST /v1/completions: one prompt, as text or token ids.

    Attributes:
        max_tokens: 0 computes the prompt, and shows no output.
        echo: whether the text begins with the prompt, whose tokens then have logprobs too, if there are any.
    """

    kind: ClassVar[Kind] = "text"
    prompt_field: ClassVar[str] = "prompt"
    unserved: ClassVar[Fields] = TEXT

    prompt: str | Annotated[TokenIds, Field(min_length=1)] = Field(json_schema_extra=_several)
    max_tokens: Int = Field(16, ge=0)
    logprobs: Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False

    @model_validator(mode="after")
    def _no_output_has_no_least(self) -> Self:
        if self.min_tokens and not self.max_tokens:
            message = f"min_tokens = {self.min_tokens}: allowed is 0, as max_tokens is 0"
            raise InvalidRequestError(message, param="min_tokens")
        return self

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
        """Output tokens at most. An engine computes one, which isn't shown if none is wanted."""
        return self.max_tokens or 1

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.logprobs if self.echo else None


def parse_chat(body: bytes) -> ChatRequest:
    """The chat in `body`. Raises `InvalidRequestError`, as `parse_body` does."""
    return parse_body(ChatRequest, body)


def parse_text(body: bytes) -> TextRequest:
    """The text completion in `body`. Raises `InvalidRequestError`, as `parse_body` does."""
    return parse_body(TextRequest, body)
