"""OpenAI's completion requests as this server takes them.

A field that OpenAI defines and the engine doesn't have is accepted only with the value that asks for nothing
(`echo: false`); any other value, and any unknown field, is an error that names it. Nothing is silently
dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json
from starlette.datastructures import Headers

from app.api.openai.request_model import RequestModel
from app.api.openai.response_format import StructuredOutputFields
from app.errors import InvalidRequestError
from app.generation import MAX_LOGPROBS, SamplingParams
from app.hashing import MAX_SALT_CHARS

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": (
        "none",
        "auto",
    ),
    "functions": ([],),
    "function_call": (
        "none",
        "auto",
    ),
    "parallel_tool_calls": (
        True,
        False,
    ),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": (
        "auto",
        "default",
    ),
}
_INFORMATIVE = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""RequestModel that never change an answer."""

MAX_SAMPLES = 128
"""Answers to one prompt at most, as OpenAI has it."""

RANK_HEADER = "X-Data-Parallel-Rank"

MAX_SHOWN = 80
"""Characters of a client's value in a message."""

Body = TypeVar("Body", bound="CompletionFields")
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]
TokenIdKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(RequestModel):
    """What a stream carries besides its chunks."""

    include_usage: bool = False


class CompletionFields(StructuredOutputFields):
    """What chat and text completions have in common."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_SAMPLES)
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    seed: int | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] = Field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: Annotated[dict[TokenIdKey, Bias], Field(max_length=1024)] = Field(default_factory=dict)
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = Field(
        None, repr=False
    )
    routed_dp_rank: int | None = None
    data_parallel_rank: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_built(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, neutral in _NEUTRAL.items():
            if name not in cls.model_fields and not _asks_for_nothing(values.get(name), neutral):
                raise InvalidRequestError(
                    f"{name} = {shown(values[name])} isn't supported; leave it out, or send {neutral[0]!r}",
                    param=name,
                    code="unsupported_field",
                )
        ignored = (_NEUTRAL.keys() | set(_INFORMATIVE)) - cls.model_fields.keys()
        return {name: value for name, value in values.items() if name not in ignored}

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            message = "stream_options: allowed only with stream: true"
            raise InvalidRequestError(message, param="stream_options")
        return self

    @model_validator(mode="after")
    def _one_rank(self) -> Self:
        new, old = self.routed_dp_rank, self.data_parallel_rank
        if None not in (new, old) and new != old:
            message = f"data_parallel_rank = {old}: the old name of routed_dp_rank, which is {new}; send one"
            raise InvalidRequestError(message, param="data_parallel_rank")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens' logprobs are wanted beside each token's own; None: none at all."""
        raise NotImplementedError

    def sampling_params(self, max_tokens: int) -> SamplingParams:
        """How the engine should sample.

        Raises:
            InvalidRequestError: fields that don't go together.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias={int(token_id): bias for token_id, bias in self.logit_bias.items()},
            logprobs=self.num_logprobs,
            structured_output=self.structured_output(),
        )


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


class ChatRequest(CompletionFields):
    """The body of POST /v1/chat/completions."""

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


class TextRequest(CompletionFields):
    """The body of POST /v1/completions: one prompt, as text or token ids."""

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


def _asks_for_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether `value` is null or neutral. 0 is not False here: `logprobs: 0` asks for the tokens' own."""
    same = (each for each in neutral if isinstance(each, bool) == isinstance(value, bool))
    return value is None or value in tuple(same)


def parse_body(model: type[Body], body: bytes) -> Body:
    """The request in `body`.

    Raises:
        InvalidRequestError: the body isn't JSON, or names the first field at fault with its value.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None


def is_chat(body: bytes) -> bool:
    """Whether `body` is meant for the chat endpoint: a JSON object with messages."""
    try:
        fields = from_json(body)
    except ValueError:
        return False
    return isinstance(fields, dict) and "messages" in fields


def pinned_rank(headers: Headers, body: CompletionFields, dp_size: int) -> int | None:
    """The rank that the client asks for: the header, else the body's field, by its new name or its old one.


    Raises:
        InvalidRequestError: the header isn't an integer, or comes more than once, or the deployment has no
            such rank; named is what the client sent.
    """
    values = headers.getlist(RANK_HEADER)
    if values:
        field, rank = RANK_HEADER, _rank_in(values)
    elif body.routed_dp_rank is not None:
        field, rank = "routed_dp_rank", body.routed_dp_rank
    elif body.data_parallel_rank is not None:
        field, rank = "data_parallel_rank", body.data_parallel_rank
    else:
        return None
    if not 0 <= rank < dp_size:
        raise InvalidRequestError(f"{field} = {shown(rank)}: allowed are 0 to {dp_size - 1}", param=field)
    return rank


def _rank_in(values: Sequence[str]) -> int:
    if len(values) > 1:
        message = f"{RANK_HEADER}: {len(values)} headers; one is allowed"
        raise InvalidRequestError(message, param=RANK_HEADER)
    if not re.fullmatch(r"-?[0-9]{1,18}", values[0]):
        message = f"{RANK_HEADER} = {shown(values[0])}; an integer is needed"
        raise InvalidRequestError(message, param=RANK_HEADER)
    return int(values[0])


def shown(value: Any) -> str:
    """A client's value for a message to that client: no longer than a line."""
    given = value if isinstance(value, str) else repr(value)
    cut = given if len(given) <= MAX_SHOWN else given[: MAX_SHOWN - 3] + "..."
    return repr(cut) if isinstance(value, str) else cut


def _invalid(error: ValidationError) -> InvalidRequestError:
    # Of a field of several types, the one that the value came nearest to has the fault that lies deepest.
    details = error.errors(include_url=False)
    first = max(details, key=lambda detail: _field(detail["loc"]).count("."))
    field = _field(first["loc"])
    match first["type"]:
        case "json_invalid":
            return InvalidRequestError(f"the body isn't JSON: {first['msg']}")
        case "extra_forbidden":
            return InvalidRequestError(
                f"{field[:MAX_SHOWN]}: unknown field", param=field, code="unknown_field"
            )
        case "missing":
            return InvalidRequestError(f"{field}: required", param=field, code="missing_field")
    faults = [detail["msg"] for detail in details if _field(detail["loc"]) == field]
    value = "" if _may_be_secret(field, first["input"]) else f" = {shown(first['input'])}"
    message = f"{field or 'the body'}{value}: {', or '.join(faults)}"
    return InvalidRequestError(message, param=field or None)


def _may_be_secret(field: str, value: Any) -> bool:
    """Whether `value` could hold a salt, also one of the wrong form: answers may be logged on their way."""
    return field == "cache_salt" and isinstance(value, str | list | dict) and len(value) > 0


def _field(loc: tuple[int | str, ...]) -> str:
    """The path to a field, without the names of a union's members that pydantic puts into it."""
    parts = [str(part) for part in loc if part != "str"]
    return ".".join(part for part in parts if part.isidentifier() or part.isdigit())
