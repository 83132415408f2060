"""What every object of a request has in common."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, model_validator

from app.config import Settings


class RequestModel(Settings):
    """An object of a request. As with OpenAI, null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}
