"""The base of every object of a request, and how a body becomes one or an error that names its fault.

A field that an API defines and the engine doesn't have is accepted only with the value that asks for nothing
(`echo: false`); any other value, and any unknown field, is an error that names it. Nothing is silently
dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from app.errors import MAX_SHOWN, InvalidRequestError, shown
from app.settings import Settings

StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]
TokenIdKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]

_SECRET_FIELDS = ("cache_salt", "extra_key", "session_id")
"""Salts, and what a client may log in with."""

UNLIMITED = sys.maxsize
"""Output tokens of a request that names no limit: the engine cuts it to what context and cache allow."""

MAX_SAMPLES = 128
"""Answers to one prompt at most, as OpenAI has it."""


class RequestModel(Settings):
    """An object of a request. As with OpenAI, null is the same as leaving a field out.

    Attributes:
        neutral_values: fields that the engine doesn't have, and the values that ask for nothing.
        informative_fields: fields that never change an answer.
        path: where a body has this object, ending in a dot; for errors.
    """

    model_config = ConfigDict(strict=True)

    neutral_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    informative_fields: ClassVar[Collection[str]] = ()
    path: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_built(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        absent = [name for name in cls.neutral_values if name not in cls.model_fields]
        for name in absent:
            neutral = cls.neutral_values[name]
            if not _asks_for_nothing(values.get(name), neutral):
                hint = f"leave it out, or send {neutral[0]!r}" if neutral else "leave it out"
                message = f"{cls.path}{name} = {shown(values[name])} isn't supported; {hint}"
                raise InvalidRequestError(message, param=cls.path + name, code="unsupported_field")
        ignored = {*absent, *cls.informative_fields} - cls.model_fields.keys()
        return {name: value for name, value in values.items() if name not in ignored}

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}


class RankFields(RequestModel):
    """The fields by which a request can name the only rank that it allows: SGLang's, and its older name."""

    routed_dp_rank: int | None = None
    data_parallel_rank: int | None = None

    @model_validator(mode="after")
    def _one_rank(self) -> Self:
        new, old = self.routed_dp_rank, self.data_parallel_rank
        if None not in (new, old) and new != old:
            message = f"data_parallel_rank = {old}: the old name of routed_dp_rank, which is {new}; send one"
            raise InvalidRequestError(message, param="data_parallel_rank")
        return self

    @property
    def rank_fields(self) -> dict[str, int | None]:
        """The fields that can name a rank, the one that counts first."""
        return {"routed_dp_rank": self.routed_dp_rank, "data_parallel_rank": self.data_parallel_rank}


Body = TypeVar("Body", bound=RequestModel)


def parse_body(model: type[Body], body: bytes) -> Body:
    """The request in `body`.

    Raises:
        InvalidRequestError: the body isn't JSON, or names the first field at fault with its value.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None


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


def _asks_for_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether `value` is null or neutral. 0 is not False here: `logprobs: 0` asks for the tokens' own."""
    same = (each for each in neutral if isinstance(each, bool) == isinstance(value, bool))
    return value is None or value in tuple(same)


def _may_be_secret(field: str, value: Any) -> bool:
    """Whether `value` could be secret, also one of the wrong form: answers may be logged on their way."""
    return field in _SECRET_FIELDS and isinstance(value, str | list | dict) and len(value) > 0


def _field(loc: tuple[int | str, ...]) -> str:
    """The path to a field, without the names of a union's members that pydantic puts into it."""
    parts = [str(part) for part in loc if part != "str"]
    return ".".join(part for part in parts if part.isidentifier() or part.isdigit())
