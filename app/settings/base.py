"""What every settings model is made of: frozen, unknown keys refused, and common kinds of numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_DP_SIZE = 1024
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
PerNode = Annotated[int, Field(ge=1, le=100, strict=True)]
"""How many replicas Ray may put on one node; its own limit is 100."""
PositiveFloat = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Base of every settings model: immutable, unknown keys and infinite numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
