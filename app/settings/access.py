"""Who may ask for what: where the keys are."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, field_validator, model_validator

from app.settings.base import Settings
from app.validation import field_fault


class AccessConfig(Settings):
    """Files of keys, never keys: `/server_info` shows the settings. Without files everything is open."""

    keys_file: Path | None = Field(
        None, description="Keys of clients, and their limits. null: prompts need no key."
    )
    admin_keys_file: Path | None = Field(
        None,
        description="Keys of operators, for `/router/*` and `/flush_cache`; they are taken everywhere. null: "
        "those need no key, or where clients need one, they are refused.",
    )
    server_info_needs_key: bool = Field(
        False,
        description="Whether `/server_info`, `/model_info` and their aliases need a key too, of either file.",
    )

    @field_validator("keys_file", "admin_keys_file")
    @classmethod
    def _is_absolute(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_absolute():
            raise ValueError("allowed is an absolute path: ingresses on many nodes read it")
        return path

    @property
    def needs_keys(self) -> bool:
        """Whether anything does."""
        return self.keys_file is not None or self.admin_keys_file is not None

    @model_validator(mode="after")
    def _has_keys_to_ask_for(self) -> Self:
        if self.server_info_needs_key and not self.needs_keys:
            why = "keys_file or admin_keys_file is needed too"
            fault = field_fault(("server_info_needs_key",), True, why)
            raise ValidationError.from_exception_data(type(self).__name__, [fault])
        return self
