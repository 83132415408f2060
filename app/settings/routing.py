"""How requests find their rank, and what routers remember."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from app.settings.base import PerNode, PositiveFloat, PositiveInt, Settings
from app.validation import one_of


class MissesConfig(Settings):
    """Why tokens weren't cached: what each router remembers to tell it."""

    remembered_blocks: PositiveInt = Field(
        262_144,
        description="Blocks of prompts, blocks that ranks dropped, and pieces of content that each router "
        "remembers, so many of each: some 0.5 kB for the three together.",
    )
    texts: bool = Field(
        False,
        description="Whether routers get the prompts' texts, keep them in memory, and show the words that "
        "changed at `/router/misses` and in receipts, to everyone who can read these. Without, they get "
        "hashes, and a place is exact to the block.",
    )


class RoutingConfig(Settings):
    """How requests find their rank."""

    policy: str = Field(
        "predicted_ttft",
        description="By what the rank is chosen: a name in `app.routing.policies.registry`, which knows what "
        "each policy does; docs/operations.md#policies has them all.",
    )
    num_routers: PositiveInt = Field(1, description="Router replicas; each follows every rank.")
    max_routers_per_node: PerNode | None = Field(
        None,
        description="Routers on one node at most. null: Ray spreads them where it can. With too few nodes "
        "for all routers, some wait for a node.",
    )
    discovery_interval_s: float = Field(0.5, ge=0.05, description="Seconds between polls of the ranks.")
    reservation_timeout_s: PositiveFloat = Field(
        5.0, description="Seconds after which a reservation that no rank acknowledged is dropped."
    )
    initial_prefill_tokens_per_s: PositiveFloat = Field(
        1000.0, description="A rank's prefill rate until one has been measured anywhere."
    )
    remembered_decisions: PositiveInt = Field(
        1000,
        description="Requests whose decisions each router keeps for `/router/decisions`: some 50 bytes for "
        "each of them and each rank.",
    )
    misses: MissesConfig = MissesConfig()

    @field_validator("policy", mode="before")
    @classmethod
    def _is_known(cls, value: Any, info: ValidationInfo) -> Any:
        """Policies aren't this module's: the caller says which there are."""
        known: Collection[str] | None = (info.context or {}).get("policies")
        if known is not None and not (isinstance(value, str) and value in known):
            raise PydanticCustomError("unknown_policy", "Input should be {known}", {"known": one_of(known)})
        return value
