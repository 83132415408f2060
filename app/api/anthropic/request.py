"""The bodies of POST /v1/messages and /v1/messages/count_tokens.

Source: https://docs.anthropic.com/en/api/messages, types of Anthropic's Python client, what Claude Code
sends.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from app.api.anthropic.blocks import TextBlock
from app.api.anthropic.conversation import Message, Translator, found_tools
from app.api.anthropic.tools import ToolChoice, Tools, offered, wish_of
from app.api.chat_body import ChatBody
from app.api.fields import MESSAGES, OUTPUT_CONFIG, THINKING, Fields
from app.api.request_model import Int, RequestBody, RequestModel, StopString, parse_body
from app.errors import InvalidRequestError
from app.generation import SamplingParams, StructuredOutput
from app.hashing import MAX_SALT_CHARS
from app.text.chat_prompt import Chat, ChatMessage
from app.text.output.formats import CallWish

_SCHEMA_FIELD = "output_config.format.schema"


class Thinking(RequestModel):
    """Whether the model thinks, where its chat template has a switch for it.

    Attributes:
        display: `omitted` leaves the thoughts out of the answer.
    """

    unserved: ClassVar[Fields] = THINKING

    type: Literal["enabled", "disabled", "adaptive"]
    display: Literal["summarized", "omitted"] = "summarized"


class JsonFormat(RequestModel):
    """The schema of an output in JSON."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(RequestModel):
    """What else is asked of an output. `effort`: for templates that read `reasoning_effort`."""

    unserved: ClassVar[Fields] = OUTPUT_CONFIG

    effort: str | None = None
    format: JsonFormat | None = None


class KeptTurns(RequestModel):
    """How many of the last assistant's messages that have thoughts keep them; `all` has no value."""

    type: Literal["thinking_turns", "all"]
    value: Annotated[Int, Field(ge=1)] | None = None


class ContextEdit(RequestModel):
    """Leaves earlier thoughts out of the prompt."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"] | KeptTurns = KeptTurns(type="thinking_turns", value=1)

    @property
    def num_thinking(self) -> int | None:
        """How many messages keep their thoughts; None: all."""
        if self.keep == "all" or self.keep.type == "all":
            return None
        if self.keep.value is None:
            field = "context_management.edits.0.keep.value"
            raise InvalidRequestError(f"{field}: required", param=field, code="missing_field")
        return self.keep.value


class ContextManagement(RequestModel):
    """What is left out of the prompt."""

    edits: Annotated[list[ContextEdit], Field(max_length=1)] = Field(default_factory=list)


class MessagesRequest(RequestBody, ChatBody):
    """The body of POST /v1/messages."""

    prompt_field: ClassVar[str] = "messages"
    unserved: ClassVar[Fields] = MESSAGES
    n: ClassVar[int] = 1
    keeps_stop: ClassVar[bool] = False
    session_id: ClassVar[str | None] = None

    model: str | None = None
    max_tokens: Int = Field(ge=1)
    messages: list[Message] = Field(min_length=1)
    system: str | list[TextBlock] = ""
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    stream: bool = False
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: Int = Field(0, ge=-1, lt=2**31)
    stop_sequences: Annotated[list[StopString], Field(max_length=16)] = Field(default_factory=list)
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    context_management: ContextManagement = ContextManagement()
    seed: Int | None = None
    priority: Int = Field(0, ge=-(2**31), lt=2**31)
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = Field(
        None, repr=False
    )

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        """See `RequestBody`; also thoughts that only another server can read."""
        foreign = any(message.has_foreign_thoughts for message in self.messages)
        return (*super().ignored_fields, *(("messages.content.signature",) if foreign else ()))

    @property
    def shows_thoughts(self) -> bool:
        """Whether the client wants to read them."""
        return self.thinking is None or self.thinking.display != "omitted"

    def chat(self) -> Chat:
        """See `ChatBody`. A last message that is the assistant's is the beginning of the answer."""
        messages = [*self._system(), *self._translator().chat_messages(self.messages)]
        is_begun = self.messages[-1].role == "assistant"
        if is_begun and "tool_calls" in messages[-1].fields:
            field = f"messages.{len(self.messages) - 1}"
            message = f"{field}: it ends in calls of tools; their results are needed, from the user"
            raise InvalidRequestError(message, param=field)
        tools = {"tools": offered(self.tools)} if offered(self.tools) else {}
        is_silent = self.tool_choice is not None and self.tool_choice.type == "none"
        effort = self.output_config.effort
        hints: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
        return Chat(
            messages,
            continue_final_message=is_begun,
            # Tools that mustn't be called change little: a template that can't write them leaves them out.
            hints={**hints, **(tools if is_silent else {})},
            hint_fields={"reasoning_effort": "output_config.effort", **self._told_thinking()},
            required={} if is_silent else tools,
            thinks=None if self.thinking is None else self.thinking.type != "disabled",
        )

    def _system(self) -> list[ChatMessage]:
        texts = (self.system,) if isinstance(self.system, str) else tuple(each.text for each in self.system)
        return [ChatMessage("system", texts, content_field="system")] if any(texts) else []

    def _translator(self) -> Translator:
        edits = self.context_management.edits
        return Translator(self.tools, edits[0].num_thinking if edits else None)

    def _told_thinking(self) -> dict[str, str]:
        """`adaptive` leaves it to the model: one that doesn't think has decided."""
        is_free = self.thinking is None or self.thinking.type == "adaptive"
        return {} if is_free else {"thinks": "thinking"}

    def wish(self) -> CallWish:
        """See `ChatBody`."""
        return wish_of(self.tools, self.tool_choice, found_tools(self.messages))

    def engine_params(self) -> SamplingParams:
        """See `ChatBody`."""
        wanted = self.output_config.format
        schema = None if wanted is None else json.dumps(wanted.json_schema)
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(self.stop_sequences),
            structured_output=None
            if schema is None
            else StructuredOutput("json_schema", schema, _SCHEMA_FIELD),
        )


class CountRequest(MessagesRequest):
    """The body of POST /v1/messages/count_tokens: the same, of which only the prompt counts."""

    max_tokens: Int = Field(1, ge=1)


def parse_messages(body: bytes) -> MessagesRequest:
    """The request in `body`. Raises `InvalidRequestError`, as `parse_body` does."""
    return parse_body(MessagesRequest, body)


def parse_count(body: bytes) -> CountRequest:
    """The request in `body`. Raises `InvalidRequestError`, as `parse_body` does."""
    return parse_body(CountRequest, body)
