"""From values to a model of settings, and from its faults to one `ConfigError` that names each field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from app.errors import ConfigError
from app.redaction import redacted

Model = TypeVar("Model", bound=BaseModel)


def one_of(names: Iterable[str]) -> str:
    """Names that are allowed, for a message."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


def validate(
    model: type[Model], values: Any, *, where: str, context: Mapping[str, Any] | None = None
) -> Model:
    """`values` as a `model`, whose validators read `context`.

    Raises:
        ConfigError: as for `load_config`, each field's path starting with `where`.
    """
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        faults = "; ".join(_fault(model, where, dict(detail)) for detail in error.errors())
        raise ConfigError(faults) from None


def _fault(model: type[BaseModel], where: str, detail: dict[str, Any]) -> str:
    path = [str(part) for part in detail["loc"]]
    field = ".".join([where, *path])
    if detail["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_at(model, path[:-1]))
        return f"{field}: unknown key; allowed here: {allowed}"
    return f"{field} = {redacted(detail['input'])!r}: {detail['msg']}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names of the settings model at `path` below `model`."""
    for name in path:
        if name.isdigit():
            continue  # a place in a list, whose entries' model was found already
        annotation = model.model_fields[name].annotation
        # An optional part is a union with None, a list has its entries' model as argument.
        inner = [each for each in (annotation, *get_args(annotation)) if _is_model(each)]
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def value_at(settings: BaseModel, path: Iterable[str]) -> Any:
    """The value of the field at `path` below `settings`."""
    value: Any = settings
    for name in path:
        value = getattr(value, name)
    return value


def field_fault(path: tuple[str, ...], given: Any, why: str) -> InitErrorDetails:
    """The fault of one field, for a validator that looks at several."""
    return {"type": PydanticCustomError("settings", "{why}", {"why": why}), "loc": path, "input": given}
