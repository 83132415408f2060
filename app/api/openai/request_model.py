"""The base of every object of a request, and how a body becomes one or an error that names its fault."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError, model_validator

from app.config import Settings
from app.errors import MAX_SHOWN, InvalidRequestError, shown


class RequestModel(Settings):
    """An object of a request. As with OpenAI, null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}


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


def _may_be_secret(field: str, value: Any) -> bool:
    """Whether `value` could hold a salt, also one of the wrong form: answers may be logged on their way."""
    return field == "cache_salt" and isinstance(value, str | list | dict) and len(value) > 0


def _field(loc: tuple[int | str, ...]) -> str:
    """The path to a field, without the names of a union's members that pydantic puts into it."""
    parts = [str(part) for part in loc if part != "str"]
    return ".".join(part for part in parts if part.isidentifier() or part.isdigit())
