"""OpenAI's completion requests as this server takes them.

A field that OpenAI defines and the engine doesn't have is accepted only with the value that asks for nothing
(`n: 1`); any other value, and any unknown field, is an error that names it. No field is silently dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from app.config import Settings
from app.engine.request import SamplingParams
from app.errors import InvalidRequestError

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
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
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": (
        "auto",
        "default",
    ),
}
_INFORMATIVE = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""Fields that never change an answer."""

Body = TypeVar("Body", bound="CompletionFields")
TokenId = Annotated[int, Field(ge=0, lt=2**32)]


class StreamOptions(Settings):
    """What a stream carries besides its chunks."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class CompletionFields(Settings):
    """What chat and text completions have in common."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    seed: int | None = None
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    # JSON has no tuples, so this one field is lenient; the ids in it aren't.
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(strict=False)] = ()
    ignore_eos: bool = False
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    routed_dp_rank: int | None = None
    data_parallel_rank: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_built(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, neutral in _NEUTRAL.items():
            if name not in cls.model_fields and not _asks_for_nothing(values.get(name), neutral):
                raise UnsupportedFieldError(name, values[name], neutral[0])
        ignored = (_NEUTRAL.keys() | set(_INFORMATIVE)) - cls.model_fields.keys()
        # As with OpenAI, null is the same as leaving a field out.
        return {name: value for name, value in values.items() if name not in ignored and value is not None}

    def sampling_params(self, max_tokens: int) -> SamplingParams:
        """How the engine should sample."""
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
        )


class TextPart(Settings):
    """One part of a message whose content is a list."""

    type: Literal["text"]
    text: str


class Message(Settings):
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

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def max_output_tokens(self) -> int | None:
        """Output tokens at most; None: as many as the context allows."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TextRequest(CompletionFields):
    """The body of POST /v1/completions: one prompt, as text or token ids."""

    prompt: str | Annotated[list[TokenId], Field(min_length=1)]
    max_tokens: int = Field(16, ge=1)

    @property
    def max_output_tokens(self) -> int | None:
        """Output tokens at most."""
        return self.max_tokens


class UnsupportedFieldError(InvalidRequestError):
    """A field of OpenAI's asks for something that isn't built."""

    def __init__(self, name: str, value: Any, neutral: Any) -> None:
        super().__init__(
            f"{name} = {value!r} isn't supported; leave it out, or send {neutral!r}",
            param=name,
            code="unsupported_field",
        )


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


def pinned_rank(headers: Mapping[str, str], body: CompletionFields) -> int | None:
    """The rank that the client asks for: the header, else the body's field, else that field's old name.

    Raises:
        InvalidRequestError: the header isn't an integer.
    """
    header = headers.get("x-data-parallel-rank")
    if header is None:
        return body.data_parallel_rank if body.routed_dp_rank is None else body.routed_dp_rank
    try:
        return int(header)
    except ValueError:
        raise InvalidRequestError(
            f"X-Data-Parallel-Rank = {header!r}; an integer is needed", param="X-Data-Parallel-Rank"
        ) from None


def _invalid(error: ValidationError) -> InvalidRequestError:
    details = error.errors(include_url=False)
    first = details[0]
    field = _field(first["loc"])
    match first["type"]:
        case "json_invalid":
            return InvalidRequestError(f"the body isn't JSON: {first['msg']}")
        case "extra_forbidden":
            return InvalidRequestError(f"{field}: unknown field", param=field, code="unknown_field")
        case "missing":
            return InvalidRequestError(f"{field}: required", param=field, code="missing_field")
    given = repr(first["input"])
    shown = given if len(given) <= 80 else given[:77] + "..."
    # A field of several types has one fault for each.
    faults = [detail["msg"] for detail in details if _field(detail["loc"]) == field]
    message = f"{field or 'the body'} = {shown}: {', or '.join(faults)}"
    return InvalidRequestError(message, param=field or None)


def _field(loc: tuple[int | str, ...]) -> str:
    """The path to a field, without the names of a union's members that pydantic puts into it."""
    parts = [str(part) for part in loc if part != "str"]
    return ".".join(part for part in parts if part.isidentifier() or part.isdigit())
