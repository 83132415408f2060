"""The base of every object of a request, and how a body becomes one or an error that names its fault.

Before a body is validated, it is sifted: what asks for nothing is taken out, what can't be done is refused,
and what no server knows is ignored and remembered, by the tables in `app.api.fields`. Nothing is dropped
silently.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from app.api.faults import invalid, not_json, short_path
from app.api.fields import Fields, Meaning
from app.errors import InvalidRequestError, shown
from app.settings.base import Settings

_BOM = b"\xef\xbb\xbf"
_PLACES = re.compile(r"\.\d+(?=\.)")
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")


def _whole(value: Any) -> Any:
    """A whole float as the integer that it is: many clients' numbers are all floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _all_whole(value: Any) -> Any:
    """The same for a list, which may be very long."""
    has_floats = isinstance(value, list) and float in set(map(type, value))
    return [_whole(each) for each in value] if has_floats else value


def _is_token_id(value: str) -> str:
    if not _TOKEN_ID.fullmatch(value):
        raise PydanticCustomError("token_id", "a token id is needed as the name")
    return value


Int = Annotated[int, BeforeValidator(_whole)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]
TokenIds = Annotated[list[TokenId], BeforeValidator(_all_whole)]
TokenIdKey = Annotated[str, AfterValidator(_is_token_id)]
Bias = Annotated[float, Field(ge=-100, le=100)]

UNLIMITED = sys.maxsize
"""Output tokens of a request that names no limit: the engine cuts it to what context and cache allow."""

MAX_SAMPLES = 128
"""Answers to one prompt at most, as OpenAI has it."""


class RequestModel(Settings):
    """An object of a request. As with OpenAI, null is the same as leaving a field out.

    Attributes:
        unserved: fields that this object may have and that aren't used, with their meaning.
        meaningful_nulls: fields whose null isn't the same as leaving them out.
    """

    model_config = ConfigDict(strict=True)

    unserved: ClassVar[Fields] = {}
    meaningful_nulls: ClassVar[Collection[str]] = ()

    @classmethod
    def kind_of(cls, values: Mapping[str, Any], path: str) -> type[RequestModel]:
        """The model of an object, where a field may have one of several: the first of them is asked.

        Args:
            values: the object.
            path: its own in the body, with a dot at its end.

        Raises:
            InvalidRequestError: it is none of them.
        """
        return cls

    @classmethod
    def unwrapped(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The object's fields, where it may come in another form than this model's."""
        return values


class RequestBody(RequestModel):
    """A whole body. It can name the only rank that it allows, by SGLang's field or its older name."""

    _ignored_fields: tuple[str, ...] = ()

    routed_dp_rank: Int | None = None
    data_parallel_rank: Int | None = None

    @model_validator(mode="after")
    def _one_rank(self) -> Self:
        new, old = self.routed_dp_rank, self.data_parallel_rank
        if None not in (new, old) and new != old:
            message = f"data_parallel_rank = {old}: the old name of routed_dp_rank, which is {new}; send one"
            raise InvalidRequestError(message, param="data_parallel_rank")
        return self

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        """Paths of the body's fields that were ignored and must be told, places in lists left out."""
        return self._ignored_fields

    @property
    def rank_fields(self) -> dict[str, int | None]:
        """The fields that can name a rank, the one that counts first."""
        return {"routed_dp_rank": self.routed_dp_rank, "data_parallel_rank": self.data_parallel_rank}


Body = TypeVar("Body", bound=RequestBody)


def read_json(body: bytes) -> Any:
    """What the body says, with a byte order mark or without.

    Raises:
        InvalidRequestError: it isn't JSON.
    """
    if not body.removeprefix(_BOM).strip():
        raise InvalidRequestError("the body is empty; a JSON object is needed", code="invalid_json")
    try:
        return from_json(body.removeprefix(_BOM), allow_inf_nan=False)
    except ValueError as error:
        raise not_json(error) from None


def parse_body(model: type[Body], body: bytes) -> Body:
    """The request in `body`.

    Raises:
        InvalidRequestError: the body isn't JSON, or names the first field at fault with its value.
    """
    return parse_values(model, read_json(body))


def parse_values(model: type[Body], values: Any) -> Body:
    """The request in a body that has been read. Raises `InvalidRequestError` as `parse_body` does."""
    sieve = _Sieve()
    try:
        values = sieve.sifted(model, values)
        parsed = model.model_validate(values)
    except ValidationError as error:
        refusal = invalid(error, values)
        refusal.ignored_fields = tuple(sieve.ignored)
        raise refusal from None
    except InvalidRequestError as error:
        error.ignored_fields = tuple(sieve.ignored)
        raise
    if sieve.ignored:
        parsed._ignored_fields = tuple(sieve.ignored)
    return parsed


class _Sieve:
    """Takes out of a body what no model has, by the tables of its objects.

    Attributes:
        ignored: paths of fields that must be told, each once, in the body's order.
    """

    def __init__(self) -> None:
        self.ignored: dict[str, None] = {}

    def sifted(self, model: type[RequestModel], value: Any, path: str = "") -> Any:
        """`value`, which is to become a `model`, with fields that it has; `path` ends in a dot.

        Raises:
            InvalidRequestError: a field asks for something that can't be done.
        """
        if isinstance(value, list):
            return [self.sifted(model, each, f"{path}{place}.") for place, each in enumerate(value)]
        if not isinstance(value, dict):
            return value
        kept = {}
        model = model.kind_of(value, path)
        served = _served(model)
        for name, inner in model.unwrapped(value).items():
            if name not in served:
                self._judge(model.unserved.get(name), f"{path}{name}", inner)
            elif inner is not None or name in model.meaningful_nulls:
                of = served[name]
                kept[name] = inner if of is None else self.sifted(of, inner, f"{path}{name}.")
        return kept

    def _judge(self, meaning: Meaning | None, path: str, value: Any) -> None:
        if value is None or (meaning and (meaning.others == "taken" or meaning.asks_for_nothing(value))):
            return
        if meaning is None or meaning.others == "ignored":
            self.ignored[_PLACES.sub("", path)] = None
            return
        neutral = f"leave it out, or send {shown(meaning.neutral[0])}" if meaning.neutral else "leave it out"
        message = f"{short_path(path)} = {shown(value)} isn't supported; {meaning.instead or neutral}"
        raise InvalidRequestError(message, param=path, code="unsupported_field")


@functools.cache
def _served(model: type[RequestModel]) -> dict[str, type[RequestModel] | None]:
    """The names of `model`'s fields in a body; of an object, or a list of objects, with their model."""
    fields = model.model_fields.items()
    return {field.alias or name: next(_models_in(field.annotation), None) for name, field in fields}


def _models_in(annotation: Any) -> Iterator[type[RequestModel]]:
    if isinstance(annotation, type) and issubclass(annotation, RequestModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
