"""The body of POST /v1/responses, and how it becomes a chat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, model_validator

from app.api.chat_body import ChatBody
from app.api.fields import RESPONSE, RESPONSE_REASONING, STREAM_OPTIONS, Fields
from app.api.openai.response_format import ANY_OBJECT
from app.api.request_model import (
    UNLIMITED,
    Int,
    RequestBody,
    RequestModel,
    StopString,
    parse_values,
    read_json,
)
from app.api.responses.conversation import messages_of
from app.api.responses.items import Item
from app.api.responses.tools import (
    AnyTool,
    NamespaceTool,
    Offer,
    ToolChoice,
    WebSearchTool,
    offers_of,
    wish_of,
)
from app.errors import InvalidRequestError, shown
from app.generation import MAX_LOGPROBS, SamplingParams, StructuredOutput
from app.hashing import MAX_SALT_CHARS
from app.text.chat_prompt import Chat, ChatMessage
from app.text.output.formats import CallWish

Json = dict[str, Any]
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    # Of tools that this server doesn't have, and of images, so there is nothing to include.
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class EarlierResponses(Protocol):
    """What is stored of the responses that a client may go on with."""

    def conversation(self, response_id: str) -> list[Json]:
        """All items up to a response's end, its own among them.

        Raises:
            InvalidRequestError: it isn't stored, or one before it isn't.
        """
        ...

    def item(self, item_id: str) -> Json | None:
        """A stored item; None if there is none with this id."""
        ...


class ResponseStreamOptions(RequestModel):
    """What a stream carries besides its events: nothing here."""

    unserved: ClassVar[Fields] = STREAM_OPTIONS


class Reasoning(RequestModel):
    """How the model thinks."""

    unserved: ClassVar[Fields] = RESPONSE_REASONING

    effort: str | None = None


class TextFormat(RequestModel):
    """What the text must be; it always keeps to the schema, `strict` or not."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_fits_type(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            message = "text.format.schema: goes with type 'json_schema', which needs it"
            raise InvalidRequestError(message, param="text.format.schema")
        return self


class TextConfig(RequestModel):
    """How the model writes."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponseRequest(RequestBody, ChatBody):
    """The body of POST /v1/responses.

    Attributes:
        previous_response_id: the response that the conversation goes on from.
        store: whether a later request may go on from this one.
        chat_template_kwargs, top_k, min_p, seed and what follows them: as in chats.
    """

    prompt_field: ClassVar[str] = "input"
    unserved: ClassVar[Fields] = RESPONSE

    _earlier: tuple[Item, ...] = ()

    model: str | None = None
    input: str | list[Item] = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[AnyTool] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    max_output_tokens: Annotated[Int, Field(ge=1)] | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_logprobs: Int = Field(0, ge=0, le=MAX_LOGPROBS)
    text: TextConfig = TextConfig()
    reasoning: Reasoning = Reasoning()
    include: list[Include] = Field(default_factory=list)
    store: bool = True
    metadata: Annotated[dict[str, str], Field(max_length=16)] = Field(default_factory=dict)
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    top_k: Int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: Int | None = None
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    ignore_eos: bool = False
    min_tokens: Int = Field(0, ge=0)
    priority: Int = Field(0, ge=-(2**31), lt=2**31)
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = Field(
        None, repr=False
    )

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.wants_logprobs:
            message = (
                f"top_logprobs = {self.top_logprobs}; allowed only with include: message.output_text.logprobs"
            )
            raise InvalidRequestError(message, param="top_logprobs")
        return self

    def after(self, items: Sequence[Item]) -> Self:
        """This request, after the items of earlier responses."""
        self._earlier = tuple(items)
        return self

    def stored_input(self, request_id: str) -> list[Json]:
        """The input's own items as they are stored, with ids of ours."""
        if isinstance(self.input, str):
            items: list[Json] = [{"type": "message", "role": "user", "content": self.input}]
        else:
            items = [_shown(item) for item in self.input]
        return [{**_in_parts(item), "id": f"in_{request_id}_{place}"} for place, item in enumerate(items)]

    def chat(self) -> Chat:
        """The conversation.

        Raises:
            InvalidRequestError: it has no message, or an item is none.
        """
        items = [("previous_response_id", item) for item in self._earlier]
        if isinstance(self.input, list):
            items += [(f"input.{place}", item) for place, item in enumerate(self.input)]
        messages = messages_of(items)
        if isinstance(self.input, str):
            messages.append(ChatMessage("user", (self.input,), content_field="input"))
        if self.instructions is not None:
            told = ChatMessage("system", (self.instructions,), content_field="instructions")
            messages = [told, *messages]
        if not messages:
            raise InvalidRequestError("input: required", param="input", code="missing_field")
        hints: dict[str, Any] = {
            "reasoning_effort": self.reasoning.effort,
            "verbosity": self.text.verbosity,
        }
        tools = [offer.as_template_takes_it() for offer in self.offers]
        required: dict[str, Any] = {}
        # Tools that mustn't be called change little: a template that can't write them leaves them out.
        (hints if self.tool_choice == "none" else required)["tools"] = tools or None
        return Chat(
            messages,
            variables=self.chat_template_kwargs,
            hints={name: value for name, value in hints.items() if value is not None},
            hint_fields={"reasoning_effort": "reasoning.effort", "verbosity": "text.verbosity"},
            required={name: value for name, value in required.items() if value},
        )

    @property
    def offers(self) -> tuple[Offer, ...]:
        """The tools. Raises `InvalidRequestError`: too many, or two of one name."""
        return offers_of(self.tools)

    def wish(self) -> CallWish:
        """The calls that it allows or wants. Raises `InvalidRequestError` for a tool that isn't there."""
        return wish_of(self.offers, self.tool_choice, parallel=self.parallel_tool_calls)

    def engine_params(self) -> SamplingParams:
        """How the engine should sample. Raises `InvalidRequestError`: fields that don't go together."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=self.max_output_tokens or UNLIMITED,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(stop),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logprobs=self.top_logprobs if self.wants_logprobs else None,
            structured_output=self._structured_output(),
        )

    def _structured_output(self) -> StructuredOutput | None:
        wanted = self.text.format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.json_schema is None:
            return StructuredOutput("json_schema", ANY_OBJECT, "text.format")
        return StructuredOutput("json_schema", json.dumps(wanted.json_schema), "text.format.schema")

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        """See `RequestBody`. A tool that can't be offered is one of them."""
        has_search = any(isinstance(tool, WebSearchTool) for tool in self.tools)
        return (*super().ignored_fields, *(("tools.web_search",) if has_search else ()))

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer has its tokens' logprobs."""
        return "message.output_text.logprobs" in self.include

    @property
    def packs_thoughts(self) -> bool:
        """Whether thoughts come in a form that every client sends back, too."""
        return "reasoning.encrypted_content" in self.include

    @property
    def n(self) -> int:
        """Samples: a response is one."""
        return 1

    @property
    def keeps_stop(self) -> bool:
        """Whether the text has the stop string that ended it."""
        return False

    @property
    def session_id(self) -> str | None:
        """The session that the body names: here only a header can."""
        return None

    def echo(self) -> Json:
        """What a response repeats of its request."""
        tools = [_shown_tool(tool) for tool in self.tools if not isinstance(tool, WebSearchTool)]
        choice = self.tool_choice or "auto"
        text_format = {"type": "text"} if self.text.format is None else _shown(self.text.format)
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata,
            "parallel_tool_calls": self.parallel_tool_calls,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": self.reasoning.effort, "summary": None},
            "temperature": self.temperature,
            "text": {**_shown(self.text), "format": text_format},
            "tool_choice": choice if isinstance(choice, str) else _shown(choice),
            "tools": tools,
            "top_logprobs": self.top_logprobs,
            "top_p": self.top_p,
        }


class _Items(RequestBody):
    """Items that come from somewhere else than a body."""

    input: list[Item]


def parse_response(body: bytes, earlier: EarlierResponses | None = None) -> ResponseRequest:
    """The request in `body`.

    Args:
        body: JSON.
        earlier: the responses that it may go on from; None where none are stored.

    Raises:
        InvalidRequestError: as `parse_body` does, or what it goes on from isn't stored.
    """
    values = read_json(body)
    if earlier is not None and isinstance(values, dict) and isinstance(values.get("input"), list):
        items = enumerate(values["input"])
        values = {**values, "input": [_resolved(each, place, earlier) for place, each in items]}
    request = parse_values(ResponseRequest, values)
    previous = request.previous_response_id
    if earlier is None and request.store and "store" in request.model_fields_set:
        request = request.told("store")
    if previous is None:
        return request
    if earlier is None:
        where = "where ingress.num_ingresses is 1 and ingress.stored_responses isn't 0"
        raise InvalidRequestError(
            f"previous_response_id = {shown(previous)}: responses are stored only {where}; "
            "send the whole conversation as input",
            param="previous_response_id",
            code="unsupported_field",
        )
    return request.after(parse_values(_Items, {"input": earlier.conversation(previous)}).input)


def _resolved(item: Any, place: int, earlier: EarlierResponses) -> Any:
    """The item at `place`, or the stored one that it refers to."""
    if not isinstance(item, Mapping) or not isinstance(item.get("id"), str):
        return item
    if item.get("type", "item_reference") != "item_reference" or "role" in item:
        return item
    found = earlier.item(item["id"])
    if found is None:
        field = f"input.{place}.id"
        message = f"{field} = {shown(item['id'])}: no stored item has this id; send the item itself"
        raise InvalidRequestError(message, param=field, code="item_not_found")
    return found


def _in_parts(item: Json) -> Json:
    """The item as OpenAI's clients read it: a message's content is a list of parts."""
    if not isinstance(item.get("content"), str):
        return item
    kind = "output_text" if item["role"] == "assistant" else "input_text"
    more: Json = {"annotations": []} if kind == "output_text" else {}
    return {**item, "content": [{"type": kind, "text": item["content"], **more}]}


def _shown(part: RequestModel) -> Json:
    return part.model_dump(by_alias=True, exclude_none=True)


def _shown_tool(tool: AnyTool) -> Json:
    """A tool as OpenAI's clients read it: of a function, all fields are there."""
    if isinstance(tool, NamespaceTool):
        return {**_shown(tool), "description": tool.description or "", "tools": [*map(_shown, tool.tools)]}
    given = _shown(tool)
    return {"parameters": None, **given} if given["type"] == "function" else given
